"""The words of a plain text, each of which carries a tag, found by its characters and by the tokens that they share."""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.tasks.tagged_rows import Span, Words
from jaxlm.tokenizer.tokenizer import Tokenizer

_ALONE = (
    "\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
)
"""Characters of Chinese and Japanese, and of Thai, Lao, Burmese and Khmer, whose words are not parted."""
_RUNNING = re.compile(rf"[^\W{_ALONE}]")
_WORDS = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+|[^\w\s]")
_JOINERS = "\u200c\u200d"


def words_of_text(value: Any, tokenizer: Tokenizer) -> Words:
    """Finds the words of a text: a run of letters and digits, a sign, or a character of a script that parts no words;
    each with its combining marks. What shares a token is one word.

    Raises:
      UserError: no string.
    """
    if not isinstance(value, str):
        raise UserError(f"expected a text, found {value!r:.60}")
    parts = _parts(value)
    return Words(value, _joined(parts, tokenizer.encode_with_offsets(value)[1]), False, parts)


def _parts(text: str) -> tuple[Span, ...]:
    """The words by their characters alone."""
    found = [match.span() for match in _WORDS.finditer(text)]
    if text.isascii():
        return tuple(found)
    parts: list[Span] = []
    for start, end in found:
        if parts and parts[-1][1] == start and _goes_on(text, parts[-1][0], start):
            start = parts.pop()[0]
        parts.append((start, end))
    return tuple(parts)


def _goes_on(text: str, begin: int, place: int) -> bool:
    """Whether the word from `begin` goes on with the character that touches it at `place`."""
    character, before = text[place], text[place - 1]
    if _extends(character) or before in _JOINERS:
        return True
    if _is_flag_letter(character):
        return place == begin + 1 and _is_flag_letter(before)
    if not _extends(before) or not _RUNNING.match(character):
        return False
    last = next((c for c in reversed(text[begin:place]) if not _extends(c)), "")
    return bool(_RUNNING.match(last))


def _extends(character: str) -> bool:
    """Combining marks, joiners, skin tones, and the tags of flags."""
    return (
        unicodedata.category(character).startswith("M")
        or character in _JOINERS
        or "\U0001f3fb" <= character <= "\U0001f3ff"
        or "\U000e0020" <= character <= "\U000e007f"
    )


def _is_flag_letter(character: str) -> bool:
    """Two of these make a flag."""
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _joined(parts: tuple[Span, ...], offsets: np.ndarray) -> tuple[Span, ...]:
    """Makes one word of those that share a token.

    Args:
      offsets: int64 [T, 2], the characters of each token.
    """
    starts, ends = [start for start, _ in parts], [end for _, end in parts]
    joined = [False] * len(parts)  # with the one before
    for begin, end in offsets.tolist():
        if end > begin:
            first, last = bisect_right(ends, begin), bisect_left(starts, end) - 1
            joined[first + 1 : last + 1] = [True] * max(0, last - first)
    words: list[Span] = []
    for part, with_previous in zip(parts, joined, strict=True):
        words.append((words.pop()[0], part[1]) if with_previous else part)
    return tuple(words)
