"""Settings as Python gives them: a config as a path, a mapping or a `Config`, and overrides as keywords."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import yaml

from jaxlm.config.loading import load_config, make_config, override_config
from jaxlm.config.nodes import Dumper
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.local_paths import check_local, expand
from jaxlm.section import Section

ConfigLike: TypeAlias = "Config | Mapping[str, Any] | str | os.PathLike[str]"
"""A YAML file's path, what such a file holds as a mapping, or a `Config`."""


def read_config(config: ConfigLike, overrides: Mapping[str, Any]) -> Config:
    """Returns the config with the overrides applied.

    Args:
      overrides: as `as_overrides` takes them.
    Raises:
      UserError: as `config.loading.load_config`.
    """
    texts = as_overrides(overrides)
    if isinstance(config, Config):
        return override_config(config, texts) if texts else config
    if isinstance(config, Mapping):
        return make_config(as_yaml(plain(config), "the config"), texts)
    if not isinstance(config, str | os.PathLike):
        raise UserError(f"the config: expected a path, a mapping or a Config, found {type(config).__name__}")
    path = os.fspath(config)
    check_local(path, "the config")
    return load_config(Path(expand(path)), texts)


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Returns keyword arguments as the `key.path=value` of the command line.

    A mapping changes the keys of a section that it names and leaves the others: `train={"epochs": 1}` is
    `train.epochs=1`. Below that, and under a dotted key, a value replaces what stands there, as on the command line.

    Raises:
      UserError: a value that YAML cannot hold.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        value = plain(value)
        if isinstance(value, dict) and "." not in name and value:
            found |= {f"{name}.{key}": item for key, item in value.items()}
        else:
            found[name] = value
    return [f"{name}={as_yaml(value, name)}" for name, value in found.items()]


def rows_of(value: Any) -> Any:
    """Returns the rows of a table of pandas or polars, which itself yields the names of its columns; else the value."""
    if not hasattr(value, "columns"):
        return value
    if callable(polars := getattr(value, "to_dicts", None)):
        return polars()
    return pandas("records") if callable(pandas := getattr(value, "to_dict", None)) else value


def plain(value: Any) -> Any:
    """Returns a value with lists, dicts and scalars of Python in the place of tables, tuples, paths, sections and
    NumPy's."""
    value = rows_of(value)
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def as_yaml(value: Any, key: str) -> str:
    """Returns a value on one line of YAML.

    Raises:
      UserError: it holds what YAML cannot; names `key`.
    """

    def refuse(item: Any) -> None:
        kind = type(item).__name__
        raise UserError(f"{key}: expected texts, numbers, true, false, None, lists and mappings; found {kind}")

    json.dumps(value, default=refuse)
    text = yaml.dump(value, Dumper=Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=1e9)
    return text.strip().removesuffix("...").rstrip()
