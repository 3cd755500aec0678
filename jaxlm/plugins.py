"""Code from outside the package: modules that register tasks and model families when they are imported."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from jaxlm.errors import UserError

GROUP = "jaxlm.plugins"
"""Entry points of installed packages that are imported before a config is read."""


def load_plugins(files: Sequence[str] = ()) -> None:
    """Imports the entry points of group `jaxlm.plugins`, then Python files; each once in a process.

    Args:
      files: paths, from `--plugin`.
    Raises:
      UserError: a file that is not there, or a plugin that cannot be imported.
    """
    for point in metadata.entry_points(group=GROUP):
        try:
            point.load()
        except Exception as error:  # whatever a stranger's module raises
            raise UserError(f"plugin {point.name} ({point.value}): cannot be imported: {error}") from error
    for file in files:
        _load_file(Path(file).expanduser().resolve())


def _load_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--plugin: no file {path}; expected a Python file that registers a task or a model family")
    name = f"jaxlm_plugin_{path.stem}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(path):
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: expected a Python file, its name ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:  # whatever the user's file raises
        del sys.modules[name]
        raise UserError(f"--plugin {path}: cannot be imported: {type(error).__name__}: {error}") from error
