"""Config files as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.errors import UserError

Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a config from text; `c.yaml` in messages."""

    def load(text: str | bytes, *overrides: str) -> Config:
        path = tmp_path / "c.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_config(path, overrides)

    return load


@pytest.fixture
def refused(load: Load, tmp_path: Path) -> Callable[..., list[str]]:
    """Returns the lines of the message with which a config is refused, the folder left out."""

    def refused(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(UserError) as error:
            load(text, *overrides)
        return str(error.value).replace(f"{tmp_path}/", "").splitlines()

    return refused
