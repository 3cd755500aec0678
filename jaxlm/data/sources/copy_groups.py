"""Groups of texts that are the same or nearly so, found among many texts at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import chain

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxlm.data.sources.near_copies import NEAR, SHINGLE

log = logging.getLogger("jaxlm")

MOST_WORDS = 10_000_000
"""Words up to which near-copies are looked for; among more, equal texts only."""
_NEIGHBOURS = 8
"""Texts of one shingle that each is compared with, in the order of spelling; up to nine texts, that is with all."""
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; in Chinese and Japanese, which part none, a character."""


def group_copies(texts: Sequence[str]) -> list[str]:
    """Groups near-copies as `near_copies.cluster_near_copies` does, fast enough for whole data sets.

    It also finds near-copies of Chinese and Japanese texts. A sequence of words that more than nine texts share links
    each of them only to the next ones in spelling.

    Returns:
      For each text its group's representative: the text of the group that sorts first. The order of the texts does not
      matter.
    """
    distinct = sorted(set(texts))
    known: dict[str, int] = {}
    words = [[known.setdefault(word, len(known) + 1) for word in _WORD.findall(text.lower())] for text in distinct]
    if sum(map(len, words)) > MOST_WORDS:
        log.info("equal texts are kept together, near-copies are not looked for: over %s words", f"{MOST_WORDS:,}")
        return list(texts)
    first = _components(*_shared(words), len(distinct))
    representative = {text: distinct[number] for text, number in zip(distinct, first.tolist(), strict=True)}
    return [representative[text] for text in texts]


def _shared(words: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of near-copies: the numbers of their texts, int64 [pairs] each."""
    shingles, owners = _shingles(words)
    sizes = np.bincount(owners, minlength=len(words))
    keys = [np.empty(0, np.int64)]
    for distance in range(1, min(_NEIGHBOURS, len(shingles) - 1) + 1):
        same = shingles[distance:] == shingles[:-distance]
        keys.append(owners[:-distance][same] * len(words) + owners[distance:][same])
    pairs, counts = np.unique(np.concatenate(keys), return_counts=True)
    one, other = pairs // max(1, len(words)), pairs % max(1, len(words))
    near = counts >= NEAR * np.minimum(sizes[one], sizes[other])
    return one[near], other[near]


def _shingles(words: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the hashes of the distinct shingles of each text, and the texts' numbers, sorted by both."""
    filled = [text + [0] * (SHINGLE - len(text)) for text in words]
    lengths = np.asarray([len(text) for text in filled], np.int64)
    flat = np.fromiter(chain.from_iterable(filled), np.uint64, int(lengths.sum()))
    hashes = np.zeros(max(0, len(flat) - SHINGLE + 1), np.uint64)
    for place in range(SHINGLE):
        hashes = _mixed(hashes + flat[place : place + len(hashes)])
    owners = np.repeat(np.arange(len(words)), lengths)[: len(hashes)]
    ends = np.cumsum(lengths)
    inside = np.arange(len(hashes)) + SHINGLE <= ends[owners]
    hashes, owners = hashes[inside], owners[inside]
    order = np.lexsort((owners, hashes))
    hashes, owners = hashes[order], owners[order]
    new = np.ones(len(hashes), bool)
    new[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    return hashes[new], owners[new]


def _mixed(values: np.ndarray) -> np.ndarray:
    """The mixing step of splitmix64: each bit of the result depends on all bits."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _components(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """Returns, for each of `count` numbers, the lowest that it is connected with."""
    if not count:
        return np.empty(0, np.int64)
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first[inverse]
