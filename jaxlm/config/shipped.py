"""The configs that come with the package: found in an installed wheel and in a clone of the repository alike."""

from __future__ import annotations

import logging
from pathlib import Path

from jaxlm.errors import UserError, did_you_mean

PREFIX = "jaxlm:"
"""Begins the name of a shipped config, as in `--config jaxlm:finetune/sst2.yaml`."""
_FOLDER = "configs"

log = logging.getLogger("jaxlm")


def shipped_folder() -> Path:
    """Returns the folder of the shipped configs: in the package as it is installed, or beside it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / _FOLDER
    return inside if inside.is_dir() else package.parent / _FOLDER


def shipped_configs() -> dict[str, Path]:
    """Returns the shipped configs by name, `finetune/sst2`, in the order of their names."""
    folder = shipped_folder()
    files = sorted(folder.rglob("*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def find_shipped(name: str, key: str) -> Path:
    """Returns the file of a shipped config.

    Args:
      name: `finetune/sst2`, also with `.yaml`, `configs/` or `jaxlm:`, or its last part where that is one config's.
      key: the option that names it, for the message.
    Raises:
      UserError: there is none of that name, or several.
    """
    configs = shipped_configs()
    bare = name.removeprefix(PREFIX).removeprefix(f"{_FOLDER}/").removesuffix(".yaml")
    found = [bare] if bare in configs else [known for known in configs if known.rpartition("/")[2] == bare]
    if len(found) == 1:
        return configs[found[0]]
    if found:
        raise UserError(f"{key}: {name!r} may be {' or '.join(found)}; expected one of them")
    near = did_you_mean(bare, [*configs, *(known.rpartition("/")[2] for known in configs)])
    raise UserError(f"{key}: no shipped config {name!r}{near}; `jaxlm init --list` shows them")


def find_config(path: Path) -> Path:
    """Returns the file that a `--config` names: a file of this machine, else a shipped one by `jaxlm:NAME` or
    `configs/NAME`.

    Raises:
      UserError: `jaxlm:` with a name that no shipped config has.
    """
    name = path.as_posix()
    if name.startswith(PREFIX):
        return find_shipped(name, "--config")
    if not path.exists() and not path.is_absolute() and path.parts[:1] == (_FOLDER,):
        inside = shipped_folder() / path.relative_to(_FOLDER)
        if inside.is_file():
            log.info("%s: there is no such file here; read from the package, %s", path, inside)
            return inside
    return path
