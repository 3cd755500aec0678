"""Which characters of a text each of its tokens stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

_SPACE = "▁"


def character_offsets(text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Returns the characters of each token, white space around them left out, as int64 [T, 2], half open.

    The backend counts in the text as it was given, but takes the space before a word into the word's token, lets
    SentencePiece's bare space mark stand for the first character of the word after it, and leaves out combining marks
    that normalization drops or joins to their letter. Here a token of white space or of a space mark gets an empty
    range, and a combining mark that no token covers belongs to the token before it.

    Args:
      tokens: vocabulary entries.
      offsets: of the backend, begin and end of each token; pieces of one character share it.
    """
    count = len(text)
    solid = np.fromiter((not character.isspace() for character in text), bool, count)
    ranges = np.asarray(offsets, np.int64).reshape(-1, 2).clip(0, count)
    begins, ends = ranges.T
    places = np.append(np.arange(count)[solid], count)
    begins = np.minimum(places[np.searchsorted(places, begins)], ends)
    last = np.searchsorted(places, ends) - 1  # the last solid character before the end
    ends = np.maximum(np.where(last < 0, 0, places[last] + 1), begins)
    for i, token in enumerate(tokens):
        if token and not token.strip(_SPACE) and _SPACE not in text[begins[i] : ends[i]]:
            ends[i] = begins[i]
    if not text.isascii():
        nexts = np.append(begins, count)[np.searchsorted(begins, ends)]
        for i in np.flatnonzero((nexts > ends) & (ends > begins)):
            while ends[i] < nexts[i] and unicodedata.category(text[ends[i]]).startswith("M"):
                ends[i] += 1
    return np.stack([begins, ends], axis=1)
