"""Writing files and folders safely: whole or not at all, one process at a time, errors that name path and space."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import logging
import os
import platform
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.errors import RunFailure

_SEAL = "sha256"
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
            _sync(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a new folder beside `path`, which becomes `path` when the block ends, its files on the disk before that.

    What stood there is replaced; a kill between its removal and the renaming leaves nothing there. Modes are those of
    the umask. After an error the new folder is removed, and what stood there is intact.

    Args:
      path: its parent exists.

    Raises:
      OSError: as it came.
    """
    temporary = path.with_name(f".{path.name}.{_writer()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        remove_folder(path)
        temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Removes a folder, or a file in its place, if it is there; after a kill a part may stand under another name.

    Raises:
      OSError: as it came.
    """
    aside = path.with_name(f".{path.name}.{_writer()}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink()


def remove_left_over(path: Path) -> None:
    """Removes the parts of folders `path` that processes of this machine were killed over; no other may be at it."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.{glob.escape(platform.node())}-*.partial"):
        shutil.rmtree(part, ignore_errors=True)


def _writer() -> str:
    """A word that no other process or thread has."""
    return f"{platform.node()}-{os.getpid()}-{threading.get_ident():x}"


def _sync(path: Path) -> None:
    """Brings a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def write_sealed(path: Path, value: dict[str, Any], *, shared: bool = False) -> None:
    """Writes a JSON object together with the SHA-256 of it, whole or not at all; `shared` as in `atomic_write`.

    Raises:
      OSError: as it came.
    """
    with atomic_write(path, sync=True, shared=shared) as temporary:
        sealed = {**value, _SEAL: _digest(value)}
        temporary.write_text(json.dumps(sealed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_sealed(path: Path) -> dict[str, Any]:
    """Returns what `write_sealed` was given.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not what was written.
    """
    value = json.loads(path.read_bytes())
    if not isinstance(value, dict) or value.pop(_SEAL, None) != _digest(value):
        raise ValueError(f"{path.name} is not what was written: its SHA-256 differs")
    return value


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
