"""Writing files safely: whole or not at all, one process at a time, and with errors that name path and free space."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxlm.errors import RunFailure

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_write(path: Path, *, sync: bool = False, shared: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which replaces `path` when the block ends; readers see the old or the new.

    After an error the temporary file is removed and the old file is intact.

    Args:
      path: its folder exists.
      sync: bring the content to the disk first, so that a power failure cannot leave an empty file.
      shared: several processes may write the file at the same time; each then has a temporary file of its own.

    Raises:
      OSError: as it came.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial" if shared else f".{path.name}.partial")
    try:
        yield temporary
        if sync:
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turns an OSError in this block into a RunFailure that names `path`, the free space and the reason."""
    try:
        yield
    except OSError as error:
        free = free_space(path.parent)
        raise RunFailure(f"{path}: cannot be written{f' ({free})' if free else ''}: {error}") from error


def free_space(folder: Path) -> str:
    """Returns `1,234 bytes free there`, or "" where the file system does not say."""
    try:
        return f"{shutil.disk_usage(folder).free:,} bytes free there"
    except OSError:
        return ""


@contextlib.contextmanager
def lock_file(path: Path, *, on_busy: Callable[[str], None], without_locks: str) -> Iterator[None]:
    """Holds a lock between processes of this machine; the system releases it when the process ends, however it ends.

    Args:
      path: of the lock file, made if absent; it then holds this process's id.
      on_busy: called with the id of the process that holds the lock; it raises, or waits and returns for another try.
      without_locks: advice for a file system without locks, where only a warning is given.

    Raises:
      OSError: the lock file cannot be written.
    """
    with path.open("a+") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                file.seek(0)
                on_busy(file.read().strip() or "(unknown)")
            except OSError as error:
                _log.warning("%s: cannot be locked (%s); %s", path, error, without_locks)
                break
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def sha256(path: Path) -> str:
    """Returns the hex SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
