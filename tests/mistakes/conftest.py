"""A tiny config and model to make mistakes with, and commands that end before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.finetuning_runs import run, write_config
from helpers.mistakes import READY
from helpers.untrained_models import write_classifier

from jaxlm.errors import RunFailure

SIZES = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}


@pytest.fixture(scope="session")
def classifier(tmp_path_factory) -> Path:
    """An HF-format BERT of two labels, neg and pos."""
    return write_classifier(tmp_path_factory.mktemp("mistakes") / "classifier")


@pytest.fixture(scope="session")
def config(tmp_path_factory, classifier) -> Path:
    """A config whose model is small and random; its data are beside it: train, validation and test.jsonl."""
    folder = tmp_path_factory.mktemp("data")
    return write_config(folder, model={"train_tokenizer": None, "tokenizer": str(classifier), "config": SIZES})


@pytest.fixture
def say(monkeypatch, capsys, tmp_path) -> Callable[..., str]:
    """Runs a command in an empty working directory and returns what it says on stderr.

    A run ends, with status 1 and `READY`, when its data are read, its model is built, and it would compile.
    """

    def ready(_setup: Any) -> None:
        raise RunFailure(READY)

    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    for module in ("training.loop", "cost.dryrun"):
        monkeypatch.setattr(f"jaxlm.{module}.make_plan", ready)

    def execute(*arguments: Any, status: int = 2) -> str:
        assert run(*arguments) == status
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    return execute


@pytest.fixture
def with_training_file(say, config, tmp_path) -> Callable[..., str]:
    """Writes a file of training rows, and says what a dry run of the config with it says."""

    def execute(name: str, content: str | bytes, *overrides: str, status: int = 2, more: str = "") -> str:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        alone = ("data.validation=null", "data.test=null")
        return say(
            "finetune", "--config", config, "--dry-run", f"data.train={{path: {path}{more}}}", *alone, *overrides,
            status=status,
        )  # fmt: skip

    return execute
