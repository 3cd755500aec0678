"""Counts the words of any number of texts in bounded memory."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

MOST_WORDS = 2_000_000
_BATCH = 4_000_000  # characters whose chunks are counted before they are split into words
_CHUNK = re.compile(r"\s*\S+|\s+")


def count_words(texts: Iterable[str], split: Callable[[str], Iterable[str]], most: int = MOST_WORDS) -> Counter[str]:
    """Returns how often each word occurs; the same texts give the same counts.

    Counts are exact for as long as there are no more than `most` different words. Each time there are more, every
    occurrence so far and to come is kept with half the probability: counts then stand for an even sample of the texts,
    in which nothing but rare words is missing.

    Args:
      texts: read once.
      split: the words of a text. Splitting at a boundary from other characters to white space beforehand must make no
        difference to it.
      most: different words held, about 150 bytes each.
    """
    generator = np.random.default_rng(0)
    words: Counter[str] = Counter()
    rate = 1.0
    for chunks in _batches(texts):
        found: Counter[str] = Counter()
        for chunk, count in chunks.items():
            for word in split(chunk):
                found[word] += count
        words.update(found if rate == 1.0 else _sample(found, rate, generator))
        while len(words) > most:
            rate /= 2
            words = _sample(words, 0.5, generator)
    return words


def _batches(texts: Iterable[str]) -> Iterator[Counter[str]]:
    """Yields the chunks (white space and the word behind it) of some `_BATCH` characters at a time, counted."""
    chunks: Counter[str] = Counter()
    size = 0
    for text in texts:
        chunks.update(_CHUNK.findall(text))
        size += len(text)
        if size >= _BATCH:
            yield chunks
            chunks, size = Counter(), 0
    yield chunks


def _sample(words: Counter[str], rate: float, generator: np.random.Generator) -> Counter[str]:
    """Keeps each occurrence with probability `rate`."""
    kept = generator.binomial(np.fromiter(words.values(), np.int64, len(words)), rate).tolist()
    return Counter({word: count for word, count in zip(words, kept, strict=True) if count})
