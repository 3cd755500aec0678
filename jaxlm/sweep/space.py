"""The space of a sweep: which keys of a config are chosen, and from what; read from a YAML file."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from jaxlm.config.loading import override_config
from jaxlm.config.nodes import parse
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.local_paths import missing
from jaxlm.section import Section

_FIXED = ("name", "logging.", "checkpoint.", "train.restart", "train.metric", "train.seeds", "train.folds")
"""Beginnings of keys that the sweep itself needs, or that would make trials incomparable."""
_TRIED = 32
"""Most combinations of values that are tried in the config before a sweep begins."""


class Range(Section):
    """Numbers between two bounds, both included; whole numbers where bounds and step are."""

    low: int | float
    """The least."""
    high: int | float
    """The greatest."""
    log: bool = False
    """Each order of magnitude is as likely as another."""
    step: int | float | None = Field(default=None, gt=0)
    """Distance between two values; absent: 1 of whole numbers, else any value."""

    @model_validator(mode="after")
    def _order(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"expected low below high, found {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"expected low above 0 with log, found {self.low}")
        if self.log and self.step is not None:
            raise ValueError("expected log or step, not both")
        return self

    @property
    def whole(self) -> bool:
        """Whether it holds integers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step) if value is not None)


Space = dict[str, Range | tuple[Any, ...]]
"""By key of the config: a range, or the values to choose from."""


def load_space(path: Path, config: Config) -> Space:
    """Reads a space and tries its values in the config: all combinations, or where they are many each value by itself.

    Raises:
      UserError: the file cannot be read or is no mapping; a key that the config lacks or that a sweep needs itself; a
        range or list that is none; values that the config refuses, alone or together.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"--space {path}: no such file{missing(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--space {path}: cannot be read as text: {error}") from error
    mistakes: list[str] = []
    root = parse(text, lambda line: f"{path}:{line}", mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    content = None if root is None else root.plain()
    if not isinstance(content, dict) or not content:
        raise UserError(
            f"{path}: expected a mapping of config keys to ranges or lists, for instance "
            "`optimizer.learning_rate: {low: 1e-5, high: 1e-4, log: true}`"
        )
    space = {str(key): _values(str(key), value, path) for key, value in content.items()}
    override_config(config, overrides({key: first(values) for key, values in space.items()}))
    for values in _combinations(space):
        try:
            override_config(config, overrides(values))
        except UserError as error:
            raise UserError(f"{path}: a trial may have {', '.join(overrides(values))}, and {error}") from error
    return space


def _combinations(space: Space) -> list[dict[str, Any]]:
    """Values to be tried, of ranges their bounds."""
    tried = {key: (v.low, v.high) if isinstance(v, Range) else v for key, v in space.items()}
    if math.prod(map(len, tried.values())) <= _TRIED:
        return [dict(zip(tried, values, strict=True)) for values in itertools.product(*tried.values())]
    return [
        {**{k: first(v) for k, v in space.items()}, key: value} for key, values in tried.items() for value in values
    ]


def _values(key: str, value: Any, path: Path) -> Range | tuple[Any, ...]:
    if key.startswith(_FIXED):
        raise UserError(f"{path}: {key}: a sweep does not choose it; set it in the config, or leave it out")
    if isinstance(value, list) and len(value) > 1:
        return tuple(value)
    if isinstance(value, dict):
        try:
            return Range.model_validate(value, strict=True)
        except ValidationError as error:
            found = error.errors(include_url=False)[0]
            where = ".".join([key, *(str(part) for part in found["loc"] if part in Range.model_fields)])
            said = found.get("ctx", {}).get("error", found["msg"])
            raise UserError(f"{path}: {where}: {said}; expected low, high and, optional, log or step") from None
    raise UserError(
        f"{path}: {key}: expected a list of at least two values, or a range such as {{low: 1, high: 4}}; "
        f"found {value!r}"
    )


def first(values: Range | tuple[Any, ...]) -> Any:
    """Returns a value of the range or list."""
    return values.low if isinstance(values, Range) else values[0]


def overrides(values: dict[str, Any]) -> list[str]:
    """Returns `key.path=value`, the value as YAML."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def plain_space(space: Space) -> dict[str, Any]:
    """Returns a space as JSON values."""
    return {k: v.model_dump() if isinstance(v, Range) else list(v) for k, v in space.items()}
