"""Stop strings as an automaton over tokens, so that a device can tell where a text ends.

A state is the longest beginning of a stop string that the text ends with (Aho and Corasick, 1975); a token leads from
one state to the next. Texts are read byte by byte, since a token may hold a part of a character alone; here a byte of
UTF-8 is the character of its number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from jaxlm.tokenizer.tokenizer import Tokenizer

_ONE_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""SentencePiece's entries of single bytes."""
_SEEN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): chr(byte) for byte in _SEEN} | {
    chr(0x100 + i): chr(byte) for i, byte in enumerate(byte for byte in range(0x100) if byte not in _SEEN)
}
"""Character of GPT-2's byte-level entries -> byte."""


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
    strings = tuple(map(_as_bytes, strings))
    return make_table(strings, [*texts, *[""] * (vocab_size - len(texts))])


def make_table(strings: Sequence[str], texts: Sequence[str]) -> StopTable:
    """Returns the table of tokens that write these texts, character by character."""
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
    """What each id writes in the middle of a text, byte by byte."""
    before = tokenizer.encode_prompt("a")[-1:]
    start = tokenizer.decode(before, skip_special_tokens=False)
    found = []
    for i in range(tokenizer.vocab_size):
        text = tokenizer.decode([*before, i], skip_special_tokens=False)
        text = text[len(start) :] if text.startswith(start) else text
        parts = _parts_of_characters(tokenizer.tokens([i])[0]) if "\ufffd" in text else None
        found.append(_as_bytes(text) if parts is None else parts)
    return found


def _parts_of_characters(entry: str) -> str | None:
    """The bytes of a vocabulary entry that stands for bytes; None: it stands for characters."""
    if _ONE_BYTE.fullmatch(entry):
        return chr(int(entry[3:5], 16))
    return "".join(map(_BYTES.__getitem__, entry)) if _BYTES.keys() >= set(entry) else None


def _as_bytes(text: str) -> str:
    return text.encode("utf-8", "surrogatepass").decode("latin-1")
