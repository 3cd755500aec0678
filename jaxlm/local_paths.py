"""Paths are of this machine: what is on another one is refused by name, before it becomes a folder called `gs:`."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from jaxlm.errors import UserError, nearest

_LFS = b"version https://git-lfs.github.com/spec/"
_REMOTE = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/")


def problem(path: str | Path) -> str | None:
    """Returns why a path is refused and what to do; None for a path of this machine.

    Of `gs://bucket/x`, `Path` makes `gs:/bucket/x`, which is refused as well; a drive, `C:/x`, is not.
    """
    match = _REMOTE.match(str(path))
    if match is None:
        return None
    scheme = match[1].lower()
    if scheme in ("http", "https", "ftp"):
        return f"expected a path of this machine, found {path}: download it first, and name the file"
    if scheme == "file":
        return f"expected a path without file://, found {path}"
    return (
        f"expected a path of this machine, found {path}: {scheme}:// is neither read nor written. Copy it here, or "
        "mount it (Cloud Storage FUSE, Mountpoint for S3, rclone mount) and name the folder of the mount"
    )


def check_local(path: str | Path, key: str) -> None:
    """Raises UserError, which names `key`, where a path is not of this machine."""
    if (why := problem(path)) is not None:
        raise UserError(f"{key}: {why}")


def expand(path: str) -> str:
    """Returns a path with the home folder in the place of `~`, as a shell does."""
    return os.path.expanduser(path) if path == "~" or path.startswith("~/") else path


def missing(path: Path, *, folders: bool = False) -> str:
    """Ends a message about a path that is not there: with the nearest name beside it, and the working directory.

    Args:
      folders: a folder is looked for, not a file.
    """
    parent = path.parent
    if not parent.is_dir():
        message = f"; there is no folder {parent} either"
        if (elsewhere := in_nearest_folder(path, folders=folders)) is not None:
            message += f"; did you mean {str(elsewhere)!r}?"
    elif folders and (found := in_usual_folder(path)) is not None:
        message = f"; did you mean {str(found)!r}?"
    else:
        there = sorted(entry.name for entry in parent.iterdir() if (entry.is_dir() if folders else entry.is_file()))
        near = nearest(path.name, there)
        if near is not None:
            message = f"; did you mean {str(parent / near)!r}?"
        else:
            message = f"; {parent} holds: {', '.join(there[:8])}" if there else f"; {parent} holds none"
    if path.is_absolute():
        return message
    return f"{message} (relative paths are taken from the working directory, {Path.cwd()})"


def in_usual_folder(path: Path) -> Path | None:
    """Returns the run or model that is meant by its name alone, such as `runs/x` by `x`; None if there is none."""
    places = () if len(path.parts) != 1 else (Path(folder) / path for folder in ("runs", "models"))
    return next((place for place in places if place.is_dir()), None)


def in_nearest_folder(path: Path, *, folders: bool = False) -> Path | None:
    """Returns the nearest path where the folder of `path` is mistyped, perhaps its own name, too; None if none is near.

    Args:
      folders: as in `missing`.
    """

    def names(folder: Path, *, folders: bool) -> list[str]:
        return sorted(entry.name for entry in folder.iterdir() if (entry.is_dir() if folders else entry.is_file()))

    above = path.parent.parent
    if path.parent.is_dir() or not above.is_dir():
        return None
    near = nearest(path.parent.name, names(above, folders=True))
    found = None if near is None else nearest(path.name, names(above / near, folders=folders))
    return None if near is None or found is None else above / near / found


def check_fetched(path: Path) -> None:
    """Raises UserError where a file is the pointer that Git LFS leaves in the place of one."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise UserError(
                f"{path}: a pointer of Git LFS stands in the place of the file; fetch it with `git lfs pull`"
            )


def _validated(path: str) -> str:
    if (why := problem(path)) is not None:
        raise ValueError(why)
    return expand(path)


LocalPath = Annotated[str, AfterValidator(_validated)]
"""A path in a config section; `~/` is the home folder."""
