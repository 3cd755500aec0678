"""Paths are of this machine: what is on another one is refused by name, before it becomes a folder called `gs:`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from jaxlm.errors import UserError

_REMOTE = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]+):/")


def problem(path: str | Path) -> str | None:
    """Returns why a path is refused and what to do; None for a path of this machine.

    Of `gs://bucket/x`, `Path` makes `gs:/bucket/x`, which is refused as well; a drive, `C:/x`, is not.
    """
    match = _REMOTE.match(str(path))
    if match is None:
        return None
    scheme = match[1].lower()
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


def _validated(path: str) -> str:
    if (why := problem(path)) is not None:
        raise ValueError(why)
    return path


LocalPath = Annotated[str, AfterValidator(_validated)]
"""A path in a config section."""
