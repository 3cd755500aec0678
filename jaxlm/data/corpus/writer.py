"""Writes a tokenized corpus, file by file append-only, so that a build that was killed goes on where it stood."""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.corpus.corpus import map_array
from jaxlm.data.corpus.documents import Place
from jaxlm.data.corpus.stored import seal
from jaxlm.data.corpus.text_batches import TextBatch

DIGEST_TYPE, OFFSET_TYPE = np.dtype("<u8"), np.dtype("<i8")
_JOURNAL = "journal.jsonl"
_JOURNAL_BYTES, _JOURNAL_SECONDS = 4 << 20, 10.0  # of tokens, and of work, that a kill may cost
_CHUNK = 1 << 22  # tokens


class TokenWriter:
    """The files tokens.bin, offsets.bin and digests.bin of a corpus that is being built; a context manager.

    Every few megabytes they are brought to the disk, and then a line in journal.jsonl says how far they are good and
    where reading goes on. Opening cuts them back to the last such line.

    Args:
      folder: made if absent.
      dtype: of the tokens.
      before, after: int32 token ids that go around every document.

    Attributes:
      place: where the document that is open, or else the next, begins in the source.
      pieces: pieces of that document that are written.
      counts: everything that was counted so far.
      num_documents, num_tokens, num_bytes: of whole documents.
      problem: the first bad row that was skipped.
    """

    def __init__(self, folder: Path, dtype: np.dtype, before: np.ndarray, after: np.ndarray) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._dtype, self._before, self._after = folder, dtype, before, after
        entry, journal_size = self._last_entry()
        self.place, self.pieces = Place(*entry.get("place", ())), int(entry.get("pieces", 0))
        self.num_documents, self.num_tokens = int(entry.get("documents", 0)), int(entry.get("tokens", 0))
        self.num_bytes = int(entry.get("bytes", 0))
        self.counts: Counter[str] = Counter(entry.get("counts", {}))
        self.problem: str | None = entry.get("problem")
        self._end = int(entry.get("end", 0))  # of what is written of the open document; `num_tokens` where none is
        self._files = {name: _open(folder / name, size) for name, size in self._sizes(entry).items()}
        self._journal = _open(folder / _JOURNAL, journal_size)
        if not entry:
            _write(self._files["offsets.bin"], np.zeros(1, OFFSET_TYPE).tobytes())
        self._journaled, self._journal_time = self._end, time.monotonic()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in (*self._files.values(), self._journal):
            file.close()

    def add(self, batch: TextBatch, ids: Sequence[np.ndarray], dropped: Sequence[bool]) -> None:
        """Appends a batch.

        Args:
          ids: int32 [T] of each of the batch's texts.
          dropped: for each of the documents that end in it, whether it is left out.
        """
        decisions = list(dropped)
        held = self._end - self.num_tokens  # tokens of the open document that are in the file
        if held and decisions and decisions[0]:
            self._forget_open()
            held = 0
        parts: list[np.ndarray] = []  # of what is kept
        document: list[np.ndarray] = []
        sizes, digests = [], []
        begun = self.pieces > 0
        for tokens, ended in zip(ids, batch.ended, strict=True):
            document += [tokens] if begun else [self._before, tokens]
            begun = ended is None
            if ended is None:
                continue
            if not decisions.pop(0):
                document.append(self._after)
                sizes.append(held + sum(map(len, document)))
                digests.append(ended.digest)
                parts += document
                self.num_bytes += ended.num_bytes
            document, held = [], 0
        written = np.concatenate([np.zeros(0, np.int32), *parts, *document]).astype(self._dtype)
        offsets = self.num_tokens + np.cumsum(np.asarray(sizes, OFFSET_TYPE))
        _write(self._files["tokens.bin"], written.tobytes())
        _write(self._files["offsets.bin"], offsets.astype(OFFSET_TYPE).tobytes())
        _write(self._files["digests.bin"], np.asarray(digests, DIGEST_TYPE).tobytes())
        self._end += len(written)
        self.num_documents += len(sizes)
        self.num_tokens += sum(sizes)
        self.counts.update(batch.counts)
        self.problem = self.problem or batch.problem
        self.place, self.pieces = batch.place, batch.pieces
        grown = (self._end - self._journaled) * self._dtype.itemsize
        if grown >= _JOURNAL_BYTES or time.monotonic() - self._journal_time >= _JOURNAL_SECONDS:
            self.checkpoint()

    def digests(self) -> np.ndarray:
        """uint64 [num_documents]: of the documents that are written."""
        return map_array(self._folder / "digests.bin", DIGEST_TYPE)

    def checkpoint(self) -> None:
        """Brings everything to the disk and notes how far it goes."""
        for file in self._files.values():
            os.fsync(file.fileno())
        entry = {
            "documents": self.num_documents,
            "tokens": self.num_tokens,
            "end": self._end,
            "bytes": self.num_bytes,
            "place": self.place,
            "pieces": self.pieces,
            "counts": dict(self.counts),
            "problem": self.problem,
        }
        _write(self._journal, json.dumps(entry).encode() + b"\n")
        os.fsync(self._journal.fileno())
        self._journaled, self._journal_time = self._end, time.monotonic()

    def finish(self, index: dict[str, Any]) -> None:
        """Writes index.json, with the digests of the files, which marks the corpus as complete; removes the journal."""
        self.checkpoint()
        max_id = 0
        with (self._folder / "tokens.bin").open("rb") as file:
            while len(tokens := np.fromfile(file, self._dtype, _CHUNK)):
                max_id = max(max_id, int(tokens.max()))
        seal(self._folder / "index.json", {**index, "max_id": max_id})
        remove_journal(self._folder)

    def _forget_open(self) -> None:
        """Removes the beginning of a document that turned out to be dropped.

        A journal that still counts it in does no harm: the document is open there, and will be left out again.
        """
        self._end = self.num_tokens
        self._files["tokens.bin"].truncate(self._end * self._dtype.itemsize)
        self._files["tokens.bin"].seek(0, os.SEEK_END)

    def _sizes(self, entry: dict[str, Any]) -> dict[str, int]:
        """Bytes of the files where a journal's line was written; nothing without one."""
        documents, end = int(entry.get("documents", -1)), int(entry.get("end", 0))
        return {
            "tokens.bin": end * self._dtype.itemsize,
            "offsets.bin": (documents + 1) * OFFSET_TYPE.itemsize,
            "digests.bin": max(documents, 0) * DIGEST_TYPE.itemsize,
        }

    def _last_entry(self) -> tuple[dict[str, Any], int]:
        """The last line of the journal that is whole and that the files bear out, and where in the journal it ends."""
        path = self._folder / _JOURNAL
        content = path.read_bytes() if path.exists() else b""
        while (end := content.rfind(b"\n") + 1) > 0:
            start = content.rfind(b"\n", 0, end - 1) + 1
            with contextlib.suppress(ValueError, TypeError):
                entry = json.loads(content[start:end])
                sizes = self._sizes(entry).items()
                if all((self._folder / name).stat().st_size >= size for name, size in sizes if size):
                    return entry, end
            content = content[:start]
        return {}, 0


def remove_journal(folder: Path) -> None:
    """Removes the journal of a build that is complete."""
    (folder / _JOURNAL).unlink(missing_ok=True)


def _open(path: Path, size: int) -> io.FileIO:
    """Opens a file for writing after its first `size` bytes; the rest is cut off."""
    file = io.FileIO(path, "r+" if path.exists() else "x+")
    file.truncate(size)
    file.seek(size)
    return file


def _write(file: io.FileIO, content: bytes) -> None:
    """Writes all of the content: a full disk may take a part before it fails."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
