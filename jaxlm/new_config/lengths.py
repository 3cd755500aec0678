"""How long the texts of rows are in tokens: counted with a model's tokenizer, or estimated from their words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.sources.table import Table
from jaxlm.new_config.columns import count_words

_MOST = 512
_LEAST = 16
_TOKENS_A_WORD = 1.5
_ROWS = 2000
"""Rows that are measured."""
_POSITIONS = ("max_position_embeddings", "n_positions")
"""Keys of config.json that say how many positions a model has."""
_SHIFTED = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Types of models of which two positions are of no use."""


class Ruler:
    """Measures texts.

    Args:
      folder: of the model whose tokenizer counts; None: words are counted.
    """

    def __init__(self, folder: Path | None) -> None:
        self._count: Callable[[str], int] = lambda text: math.ceil(_TOKENS_A_WORD * count_words(text))
        self._positions = _MOST
        self._shared: int | None = None
        if folder is not None:
            from jaxlm.tokenizer.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(folder)
            self._count = lambda text: sum(len(part.ids) for part in tokenizer.encode([text], max_length=1 << 24)[0])
            self._positions = min(_MOST, _positions(folder))
            self._shared = _shared_positions(folder)

    def longest(self, table: Table, columns: Sequence[str], *, candidates: bool = False) -> int:
        """Returns a `max_length` that 99 of 100 rows keep, at most the positions of the model.

        Args:
          columns: whose texts are read together.
          candidates: the first is read beside one of the others at a time.
        """
        step = max(1, len(table) // _ROWS)
        lengths: list[int] = []
        for row in table.rows[::step]:
            first, *others = ([self._count(text) + 2 for text in _texts(row[c], apart=candidates)] for c in columns)
            more = [length for other in others for length in other]
            lengths.append(sum(first) + (max(more, default=0) if candidates else sum(more)))
        lengths.sort()
        found = lengths[min(len(lengths) - 1, math.ceil(0.99 * len(lengths)) - 1)]
        return min(self._positions, max(_LEAST, 8 * math.ceil(found / 8)))

    def fit(self, read: int, written: int) -> tuple[int, int]:
        """Returns lengths of what is read and written that a decoder alone has positions for, together."""
        if self._shared is None or read + written <= self._shared:
            return read, written
        written = min(written, self._shared // 2)
        return min(read, self._shared - written), written

    @property
    def positions(self) -> int:
        """The most tokens that the model takes, as far as it is known, and not above 512."""
        return self._positions


def _texts(cell: Any, *, apart: bool) -> list[str]:
    """The texts of a cell; those of a list as one, unless they are read apart."""
    if isinstance(cell, list):
        parts = [str(part) for part in cell]
        return parts if apart else [" ".join(parts)]
    return [] if cell is None else [str(cell)]


def _config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _shared_positions(folder: Path) -> int | None:
    """The positions of a decoder alone, in which it reads and writes; None: of other models, or not known."""
    config = _config(folder)
    if config.get("is_encoder_decoder") or config.get("model_type") in ("t5", "mt5"):
        return None
    return next((config[k] for k in _POSITIONS if isinstance(config.get(k), int)), None)


def _positions(folder: Path) -> int:
    config = _config(folder)
    found = next((config[k] for k in _POSITIONS if isinstance(config.get(k), int)), _MOST)
    return found - 2 * (config.get("model_type") in _SHIFTED)
