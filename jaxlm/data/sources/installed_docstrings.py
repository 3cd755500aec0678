"""The built-in source `installed_docstrings`: docstrings of the standard library and of all installed packages."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.sources import stdlib_docstrings
from jaxlm.data.sources.docstrings import prose, read_docstrings
from jaxlm.data.sources.near_copies import CopyIndex
from jaxlm.errors import UserError, did_you_mean

SPLITS = ("train", "validation")
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "testing", "site-packages", "dist-packages", "__pycache__"}
_VERSION = 2  # of what follows from the files


@dataclass(frozen=True)
class InstalledDocstrings:
    """One split of the docstrings, an iterable of texts: 95 % train, 5 % validation, by a hash of the text.

    Nothing is imported or executed: the sources are parsed, file after file, in an order that a hash of their names
    gives, so that the first texts come from everywhere. The texts are cleaned like those of `stdlib_docstrings`, and
    each comes once. Near-copies (`near_copies.CopyIndex`) of a validation or test text of `stdlib_docstrings` are left
    out, so that a model that is pretrained on this source can be tested on that one. The texts depend on what is
    installed, and on nothing else.

    Args:
      split: one of `SPLITS`.
      limit: only the first texts.
    Raises:
      UserError: an unknown split.
    """

    split: str
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            message = f"installed_docstrings: no split {self.split!r}; its splits are: {', '.join(SPLITS)}"
            raise UserError(message + did_you_mean(self.split, SPLITS))

    def __iter__(self) -> Iterator[str]:
        copies = CopyIndex(
            row["text"]
            for split in stdlib_docstrings.SPLITS[1:]
            for row in stdlib_docstrings.load_docstrings(split).rows
        )
        seen: set[bytes] = set()
        left = self.limit
        for path in source_files():
            for text in map(prose, read_docstrings(path)):
                digest = hashlib.sha256(text.encode()).digest()[:8]
                if not text or digest in seen:
                    continue
                seen.add(digest)
                if _side(digest) != self.split or text in copies:
                    continue
                yield text
                if left is not None:
                    left -= 1
                    if not left:
                        return

    def content(self, contents: Contents) -> str:
        """Returns the hex SHA-256 of what decides the texts: all files, in order."""
        digests = [contents.digest(path) for path in source_files()]
        return hashlib.sha256("\n".join([str(_VERSION), *digests]).encode()).hexdigest()


def source_files() -> list[Path]:
    """Returns the Python files of the standard library and of installed packages without tests, in reading order."""
    roots = dict.fromkeys(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
    found: dict[tuple[bytes, str], Path] = {}
    for root in roots:
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
            for name in files:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    relative = path.relative_to(root).as_posix()
                    found[hashlib.sha256(relative.encode("utf-8", "replace")).digest(), relative] = path
    return [found[key] for key in sorted(found)]


def _side(digest: bytes) -> str:
    return SPLITS[digest[0] < 256 // 20]
