"""Hashes of documents' texts: eight bytes each, in sets that hold millions of them in little memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

_CHUNK = 1 << 20


class TextDigest:
    """The hash of a document that comes in pieces; where it is cut makes no difference.

    Attributes:
      num_bytes: UTF-8 bytes so far.
    """

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        self.num_bytes = 0

    def update(self, text: str) -> None:
        encoded = text.encode()
        self._hash.update(encoded)
        self.num_bytes += len(encoded)

    def value(self) -> int:
        """Returns the hash, below 2**64; among 20 million documents, two different ones share one with odds of 1e-5."""
        return int.from_bytes(self._hash.digest(), "little")


class DigestSet:
    """A growing set of hashes: 8 bytes each, as sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def __contains__(self, digest: int) -> bool:
        return bool(self.contains(np.asarray([digest], np.uint64))[0])

    def __len__(self) -> int:
        return sum(map(len, self._runs))

    def contains(self, digests: np.ndarray) -> np.ndarray:
        """Returns bool [n]: which of these (uint64 [n]) are in the set."""
        found = np.zeros(len(digests), bool)
        for run in self._runs:
            places = np.minimum(np.searchsorted(run, digests), len(run) - 1)
            found |= run[places] == digests
        return found

    def add(self, digests: np.ndarray) -> np.ndarray:
        """Adds hashes (uint64 [n]); returns bool [n]: which were not in the set, nor earlier among them."""
        new = np.zeros(len(digests), bool)
        new[np.unique(digests, return_index=True)[1]] = True
        new &= ~self.contains(digests)
        run = np.sort(digests[new])
        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")  # merges sorted runs
        if len(run):
            self._runs.append(run)
        return new

    def add_all(self, arrays: Iterable[np.ndarray]) -> DigestSet:
        """Adds memory-mapped arrays, a part at a time; returns the set."""
        for array in arrays:
            for start in range(0, len(array), _CHUNK):
                self.add(np.array(array[start : start + _CHUNK]))
        return self


def digest_texts(texts: Iterable[str]) -> str:
    """Returns the hex SHA-256 of a list of texts."""
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big"))
        digest.update(encoded)
    return digest.hexdigest()
