"""Stop strings as an automaton over tokens, so that a device can tell where a text ends.

A state is the longest beginning of a stop string that the text ends with (Aho and Corasick, 1975); a token leads from
one state to the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxlm.tokenizer.tokenizer import Tokenizer


class StopTable(NamedTuple):
    """What each token does in each state; S states, V vocab."""

    following: np.ndarray
    """int32 [S, V], the state after the token."""
    ends: np.ndarray
    """bool [S, V], whether the token completes a stop string, if only within itself."""

    def after(self, ids: Iterable[int]) -> int:
        """Returns the state after a prompt: a stop string may begin there."""
        state = 0
        for token in ids:
            state = int(self.following[state, token])
        return state


@lru_cache(maxsize=8)
def stop_table(tokenizer: Tokenizer, strings: tuple[str, ...], vocab_size: int) -> StopTable:
    """Returns the table of a tokenizer's tokens; ids of the model that the tokenizer lacks write nothing."""
    texts = _token_texts(tokenizer)
    return make_table(strings, [*texts, *[""] * (vocab_size - len(texts))])


def make_table(strings: Sequence[str], texts: Sequence[str]) -> StopTable:
    """Returns the table of tokens that write these texts."""
    begins = sorted(
        {text[:end] for text in strings for end in range(len(text) + 1)}, key=lambda text: (len(text), text)
    )
    number = {text: i for i, text in enumerate(begins)}

    def walk(state: str, text: str) -> tuple[int, bool]:
        """Character by character; what no stop string has leads back to the beginning."""
        ended = False
        for character in text:
            state += character
            while state not in number:
                state = state[1:]
            ended |= any(state.endswith(string) for string in strings)
        return number[state], ended

    characters = {character for string in strings for character in string}
    following, ends = np.zeros((len(begins), len(texts)), np.int32), np.zeros((len(begins), len(texts)), bool)
    following[:] = np.arange(len(begins))[:, None]  # of a token that writes nothing
    for token, text in enumerate(texts):
        if not text:
            continue
        if characters.isdisjoint(text):
            following[:, token] = 0
            continue
        for i, state in enumerate(begins):
            following[i, token], ends[i, token] = walk(state, text)
    return StopTable(following, ends)


def _token_texts(tokenizer: Tokenizer) -> list[str]:
    """What each id writes in the middle of a text."""
    before = tokenizer.encode_prompt("a")[-1:]
    start = tokenizer.decode(before, skip_special_tokens=False)
    texts = (tokenizer.decode([*before, i], skip_special_tokens=False) for i in range(tokenizer.vocab_size))
    return [text[len(start) :] if text.startswith(start) else text for text in texts]
