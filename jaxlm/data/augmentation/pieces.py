"""Takes a text apart into the words that edits change and spans that they leave alone, and joins them again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

IDEOGRAPH = r"\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Han characters and kana: text without spaces, whose units are characters."""
_UNIT = re.compile(rf"[{IDEOGRAPH}]|[^\s{IDEOGRAPH}]+")
_ONE_IDEOGRAPH = re.compile(rf"[{IDEOGRAPH}]")

FIXED = -2
"""`Piece.kept` of a word that stays where it is, because what stands beside it is kept."""

Span = tuple[int, int]
"""First character, and the one behind the last."""


class Piece(NamedTuple):
    """A word, a character of Chinese, or a span that is kept as it is.

    Attributes:
      text: without white space around it, unless it is kept.
      gap: the white space before it.
      kept: number of the span that it is; -1: a word, which may be edited; `FIXED`: one that may not.
    """

    text: str
    gap: str = ""
    kept: int = -1

    @property
    def is_word(self) -> bool:
        """Whether it may be edited."""
        return self.kept == -1


def split_pieces(text: str, kept: Sequence[Span] = ()) -> tuple[list[Piece], str]:
    """Returns the pieces of a text, and the white space at its end.

    Args:
      kept: spans in their order, which share no character; each becomes one piece. What touches one, as the comma in
        `Paris,`, is `FIXED`: another word in its place would grow together with the span.
    """
    pieces: list[Piece] = []
    end = 0
    for number, (first, last) in enumerate((*kept, (len(text), len(text)))):
        for found in _UNIT.finditer(text, end, first):
            pieces.append(Piece(found.group(), text[end : found.start()]))
            end = found.end()
        if number < len(kept):
            pieces.append(Piece(text[first:last], text[end:first], number))
            end = last
    for i, piece in enumerate(pieces):
        before, behind = pieces[i - 1] if i else None, pieces[i + 1] if i + 1 < len(pieces) else None
        touches = before is not None and before.kept >= 0 and _grow_together(before, piece)
        if piece.is_word and (touches or behind is not None and behind.kept >= 0 and _grow_together(piece, behind)):
            pieces[i] = piece._replace(kept=FIXED)
    return pieces, text[end:]


def _grow_together(first: Piece, second: Piece) -> bool:
    """Whether one piece follows another in one word."""
    last, next_ = first.text[-1], second.text[0]
    return not (second.gap or last.isspace() or next_.isspace() or is_ideograph(last) or is_ideograph(next_))


def join_pieces(pieces: Sequence[Piece], tail: str = "") -> tuple[str, list[Span]]:
    """Returns the text, and where the kept spans are in it now, in the order of their numbers."""
    parts: list[str] = []
    spans: dict[int, Span] = {}
    place = 0
    for piece in pieces:
        place += len(piece.gap)
        if piece.kept >= 0:
            spans[piece.kept] = (place, place + len(piece.text))
        place += len(piece.text)
        parts += (piece.gap, piece.text)
    return "".join((*parts, tail)), [spans[number] for number in sorted(spans)]


def is_ideograph(text: str) -> bool:
    """Whether a word is a character of a text without spaces."""
    return _ONE_IDEOGRAPH.fullmatch(text) is not None


def cased_as(model: str, word: str) -> str:
    """A word with the capitals of another."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
