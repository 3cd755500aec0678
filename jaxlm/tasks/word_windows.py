"""The words of a row in windows of tokens; each word is answered in the window where it has most context."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.examples.example import Example
from jaxlm.data.examples.token_store import Pieces, TokenStore
from jaxlm.tasks.tagged_rows import Words
from jaxlm.tokenizer.tokenizer import Tokenizer


class WordWindow(NamedTuple):
    """A window of a row.

    Attributes:
      tokens: int32 [T].
      words: int [T], the word that is learned and answered at each token, the first of that word; -1 elsewhere.
      spans: int32 [W, 2], the characters of every word of the row.
    """

    tokens: np.ndarray
    words: np.ndarray
    spans: np.ndarray


def tokens_of_words(rows: Sequence[Words], tokenizer: Tokenizer, store: TokenStore | None) -> Iterable[Pieces]:
    """Returns of each row the ids of its tokens, int32 [T], and the word of each, as `Tokenizer.encode_parts` does."""

    def make() -> Iterator[Pieces]:
        return (tokenizer.encode_parts(row.text, [start for start, _ in row.spans]) for row in rows)

    if store is None or len(rows) < store.least:
        return make()
    keys = [json.dumps([row.text, row.spans]) for row in rows]
    return store.read(tokenizer, keys, "words", make)


def word_windows(
    words: Words, pieces: Pieces, tokenizer: Tokenizer, *, max_length: int, stride: int
) -> list[WordWindow]:
    """Returns the windows of a row, in order. A word of which the tokenizer keeps nothing is in none.

    Args:
      pieces: the row's, of `tokens_of_words`.
    """
    ids, index = pieces
    first = index >= 0
    first[1:] &= index[1:] != index[:-1]
    room = max_length - sum(map(len, tokenizer.special_token_affixes))
    windows = tokenizer.frame(ids, max_length=max_length, stride=max(0, min(stride, room - 2)))
    owner = _owners([places for _, places in windows], len(ids))
    spans = np.asarray(words.spans, np.int32).reshape(-1, 2)
    found = []
    for number, (tokens, places) in enumerate(windows):
        carries = (places >= 0) & np.append(first, False)[places] & (np.append(owner, -1)[places] == number)
        found.append(WordWindow(tokens, np.where(carries, np.append(index, -1)[places], -1), spans))
    return found


def _owners(windows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """int [length]: for each token of a row the window in which it stands farthest from an end that cuts the row."""
    owner, best = np.zeros(length, np.int64), np.full(length, -1)
    for number, places in enumerate(windows):
        inside = places[places >= 0]
        if not len(inside):
            continue
        before = np.full(len(inside), length) if inside[0] == 0 else inside - inside[0]
        after = np.full(len(inside), length) if inside[-1] == length - 1 else inside[-1] - inside
        context = np.minimum(before, after)
        better = context > best[inside]
        owner[inside[better]], best[inside[better]] = number, context[better]
    return owner


def tagged_example(window: WordWindow, row: int, gold: np.ndarray | None) -> Example:
    """Makes the example of a window: each word's tag at its first token, weight 0 elsewhere.

    Args:
      row: number of its row in the table.
      gold: int32 [W], ids of the tags of the row's words; None: not known.
    """
    carries = window.words >= 0
    labels = np.zeros(len(window.tokens), np.int32)
    if gold is not None:
        labels[carries] = gold[window.words[carries]]
    weights = carries.astype(np.float32)
    arrays = {"tokens": window.tokens, "token_types": np.zeros_like(labels), "labels": labels, "weights": weights}
    return Example(arrays, row, host=window)
