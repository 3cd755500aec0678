"""`Contents`: SHA-256 of files, remembered, so that a run need not read a large corpus again to recognize it."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from jaxlm.errors import UserError
from jaxlm.files import read_sealed, sha256, write_sealed

_RECENT = 2.0  # seconds in which a file may change again without a change of its times
_RECENT_HERE = 0.1  # the same, where files are our own and lie on a disk whose clock is this machine's


class Contents:
    """Digests of files by content.

    What was read before counts as unchanged where size, inode and both times (of change of content, and of anything)
    are the same, unless it was changed just before it was read.

    Args:
      memory: file that the digests are kept in; None: nowhere.
    """

    def __init__(self, memory: Path | None = None) -> None:
        self._memory = memory
        self._known: dict[str, list[int | str]] = {}
        if memory is not None:
            with contextlib.suppress(OSError, ValueError):  # it only saves time
                self._known = read_sealed(memory)

    def digest(self, path: Path) -> str:
        """Returns the hex SHA-256 of a file's content.

        Raises:
          UserError: it cannot be read.
        """
        try:
            return self._digest(path, _RECENT)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None

    def problem(self, path: Path, size: int, digest: str) -> str | None:
        """Returns why a file that this program wrote is not what it wrote; None if it is.

        Args:
          size, digest: its bytes and hex SHA-256 then.
        """
        try:
            found = path.stat().st_size
            if found != size:
                return f"{path.name} has {found:,} bytes instead of {size:,}"
            if self._digest(path, _RECENT_HERE) != digest:
                return f"{path.name} is not what was written: its SHA-256 differs"
        except FileNotFoundError:
            return f"{path.name} is missing"
        except OSError as error:
            return f"{path.name} cannot be read: {error.strerror or error}"
        return None

    def _digest(self, path: Path, recent: float) -> str:
        name, facts = os.path.abspath(path), path.stat()
        stamp = [facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns]
        known = self._known.get(name)
        if known is not None and known[:4] == stamp:
            return str(known[4])
        started = time.time()
        digest = sha256(path)
        if started - max(facts.st_mtime, facts.st_ctime) > recent:
            self._known[name] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Stores the digests for the next run; if that fails, the next run computes them again."""
        if self._memory is None:
            return
        with contextlib.suppress(OSError):
            write_sealed(self._memory, self._known, shared=True)
