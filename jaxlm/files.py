"""Turns what the file system refuses, a full disk above all, into a message that says so."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from jaxlm.errors import RunFailure


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What goes wrong in this block went wrong writing `path`.

    Raises:
        RunFailure: names the path, the reason, and the bytes that are free there.
    """
    try:
        yield
    except OSError as error:
        free = ""
        with contextlib.suppress(OSError):
            free = f" ({shutil.disk_usage(path.parent).free:,} bytes free there)"
        raise RunFailure(f"{path}: cannot be written{free}: {error}") from error
