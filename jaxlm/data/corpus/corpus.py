"""`Corpus`: the token ids of many documents, end to end in a memory-mapped file, and where each document begins."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_READS_TO_RELEASE = 4096  # of up to 64 KiB each, which is what the system maps around a page that is read


@dataclass(frozen=True)
class Corpus:
    """Tokenized documents.

    Attributes:
      name: what messages call it: "data.train (data/wiki/*.txt.gz)".
      tokens: uint16 or uint32 [N], the documents' token ids, as `token_cache` wraps them.
      offsets: int64 [D + 1]; document d is tokens[offsets[d] : offsets[d + 1]], and none is empty.
      digests: uint64 [D], a hash of each document's text.
      num_bytes: UTF-8 bytes of all the documents' text, without what wraps them.
      fingerprint: hex SHA-256 of everything that decides the tokens.
      counts: what reading and cleaning counted, such as `bad_rows`, `empty_documents`, `duplicates_dropped`.
      directory: where the arrays lie, and plans made from them; None: in memory alone.
    """

    name: str
    tokens: np.ndarray
    offsets: np.ndarray
    digests: np.ndarray
    num_bytes: int
    fingerprint: str
    counts: Mapping[str, int] = field(default_factory=dict)
    directory: Path | None = None
    _reads: Iterator[int] = field(default_factory=lambda: itertools.count(1), repr=False, compare=False)

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns int32 [stop - start], a copy of those tokens.

        Now and then the pages read so far leave the process's resident memory (they stay in the system's file cache),
        so that an epoch over a large corpus does not count as memory in use.
        """
        ids = np.array(self.tokens[start:stop], np.int32)
        if next(self._reads) % _READS_TO_RELEASE == 0:
            release(self.tokens)
        return ids


def release(array: np.ndarray) -> None:
    """Drops the pages of a memory-mapped array from resident memory; does nothing to other arrays."""
    mapping = getattr(array, "_mmap", None)
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def map_array(path: Path, dtype: type | np.dtype | str) -> np.ndarray:
    """Returns the array in a file, memory-mapped and read-only."""
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, "r")
