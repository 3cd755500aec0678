"""`Contents`: SHA-256 of files, remembered, so that a run need not read a large corpus again to recognize it."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from jaxlm.errors import UserError
from jaxlm.files import atomic_write, sha256

_RECENT = 2.0  # seconds in which a file may change again without a change of its times


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
                known = json.loads(memory.read_text("utf-8"))
                self._known = known if isinstance(known, dict) else {}

    def digest(self, path: Path) -> str:
        """Returns the hex SHA-256 of a file's content.

        Raises:
          UserError: it cannot be read.
        """
        try:
            return self._digest(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None

    def _digest(self, path: Path) -> str:
        name, facts = os.path.abspath(path), path.stat()
        stamp = [facts.st_size, facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns]
        known = self._known.get(name)
        if isinstance(known, list) and known[:4] == stamp:
            return str(known[4])
        started = time.time()
        digest = sha256(path)
        if started - max(facts.st_mtime, facts.st_ctime) > _RECENT:
            self._known[name] = [*stamp, digest]
        return digest

    def save(self) -> None:
        """Stores the digests for the next run; if that fails, the next run computes them again."""
        if self._memory is None:
            return
        with contextlib.suppress(OSError), atomic_write(self._memory, shared=True) as temporary:
            temporary.write_text(json.dumps(self._known), "utf-8")
