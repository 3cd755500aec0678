"""Copies of rows whose texts a model rewrites, many at a time: collects the texts, and puts the new ones in place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.augmentation.pieces import Piece
from jaxlm.data.sources.table import Table

Row = dict[str, Any]
CHUNK = 1024
"""Rows whose texts are rewritten at a time."""


class Draft(NamedTuple):
    """A text that is to be rewritten.

    Attributes:
      pieces: words, and spans that have to stay as they are.
      draw: gives the random numbers of this text alone.
    """

    pieces: tuple[Piece, ...]
    draw: np.random.Generator


Rewrite = Callable[[Sequence[Draft]], list[list[Piece]]]
"""Returns new pieces for each draft, the kept ones as they were."""


class _Collector(Editor):
    """Collects the texts of a row and changes nothing."""

    def __init__(self) -> None:
        self.texts: list[tuple[Piece, ...]] = []

    def edit_pieces(self, pieces: Sequence[Piece]) -> list[Piece]:
        self.texts.append(tuple(pieces))
        return list(pieces)


class _Replacer(Editor):
    """Puts new texts in the places of those that a `_Collector` found in the same row."""

    def __init__(self, texts: Iterator[list[Piece]]) -> None:
        self.texts = texts

    def edit_pieces(self, pieces: Sequence[Piece]) -> list[Piece]:
        return next(self.texts)


def rewrite_rows(
    table: Table, copies: int, seed: int, edit_row: Callable[[Row, Editor], Row | None], rewrite: Rewrite
) -> Iterator[tuple[int, Row]]:
    """Yields (number of the row, its rewritten copy), copy by copy; a copy that came out as its row is left out.

    What is drawn depends on (seed, number of the copy, number of the row, number of the text in the row) alone.

    Args:
      edit_row: a task's (`RowTask.edit_row`).
    """
    for copy in range(copies):
        for start in range(0, len(table), CHUNK):
            numbers = range(start, min(start + CHUNK, len(table)))
            drafts: list[list[Draft]] = []
            for i in numbers:
                collector = _Collector()
                found = edit_row(table.rows[i], collector)
                texts = [] if found is None else collector.texts
                draws = (np.random.default_rng([seed, copy, table.number(i), k]) for k in range(len(texts)))
                drafts.append([Draft(*draft) for draft in zip(texts, draws, strict=True)])
            written = iter(rewrite([draft for of_row in drafts for draft in of_row]))
            for i, of_row in zip(numbers, drafts, strict=True):
                new = [next(written) for _ in of_row]
                edited = edit_row(table.rows[i], _Replacer(iter(new))) if new else None
                if edited is not None and edited != table.rows[i]:
                    yield i, edited
