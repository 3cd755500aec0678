"""Texts that are nearly the same, found by the sequences of words that they share."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

SHINGLE = 5  # words of the sequences that two texts are compared by
NEAR = 0.5  # share of the shorter text's shingles that makes two texts near-copies


class CopyIndex:
    """Texts, and which of them are near-copies of a given one.

    Two texts are near-copies where at least half of the distinct 5-word shingles of the one that has fewer (a text of
    under 5 words is one shingle) stand in the other. Letter case and punctuation do not count.
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._texts_of: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        self._sizes: list[int] = []
        for text in texts:
            self.add(text)

    def __contains__(self, text: str) -> bool:
        return bool(self.find(text))

    def add(self, text: str) -> None:
        """Adds a text under the next number, from 0."""
        own = _shingles(text)
        for shingle in own:
            self._texts_of[shingle].append(len(self._sizes))
        self._sizes.append(len(own))

    def find(self, text: str) -> list[int]:
        """Returns the numbers of the near-copies of a text."""
        own = _shingles(text)
        shared = Counter(number for shingle in self._texts_of.keys() & own for number in self._texts_of[shingle])
        return [number for number, count in shared.items() if count >= NEAR * min(len(own), self._sizes[number])]


def cluster_near_copies(texts: Sequence[str]) -> list[str]:
    """Clusters near-copies, so that a split can keep each cluster on one side.

    Clusters are the connected components of "is a near-copy of" (`CopyIndex`).

    Returns:
      For each text its cluster's representative: the text of the cluster that sorts first.
    """
    parents = list(range(len(texts)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    index = CopyIndex()
    for i, text in enumerate(texts):
        for j in index.find(text):
            parents[root(i)] = root(j)
        index.add(text)
    first: dict[int, str] = {}
    for i, text in enumerate(texts):
        first[root(i)] = min(text, first.get(root(i), text))
    return [first[root(i)] for i in range(len(texts))]


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return set(zip(*(words[i:] for i in range(SHINGLE)), strict=False)) if len(words) >= SHINGLE else {tuple(words)}
