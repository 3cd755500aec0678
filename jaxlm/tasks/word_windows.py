"""The words of a row in windows of tokens; each word is answered in the window where it has most context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxlm.tasks.tagged_rows import Words
from jaxlm.tokenizer.tokenizer import Tokenizer


def word_windows(
    words: Words, tokenizer: Tokenizer, *, max_length: int, stride: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns the windows of a row, in order: (int32 [T] tokens, int [T] words).

    The second names the word that is learned and answered at each token, the first of that word; -1 elsewhere. A word
    of which the tokenizer keeps nothing is in no window.
    """
    ids, index = tokenizer.encode_parts(words.text, [start for start, _ in words.spans])
    first = index >= 0
    first[1:] &= index[1:] != index[:-1]
    room = max_length - sum(map(len, tokenizer.special_token_affixes))
    windows = tokenizer.frame(ids, max_length=max_length, stride=max(0, min(stride, room - 2)))
    owner = _owners([places for _, places in windows], len(ids))
    found = []
    for number, (tokens, places) in enumerate(windows):
        carries = (places >= 0) & np.append(first, False)[places] & (np.append(owner, -1)[places] == number)
        found.append((tokens, np.where(carries, np.append(index, -1)[places], -1)))
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
