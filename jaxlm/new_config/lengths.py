"""How long the texts of rows are in tokens: counted with a model's tokenizer, or estimated from their words."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxlm.data.sources.table import Table
from jaxlm.new_config.columns import count_words

_MOST = 512
_LEAST = 16
_TOKENS_A_WORD = 1.5
_ROWS = 2000
"""Rows that are measured."""
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
        if folder is not None:
            from jaxlm.tokenizer.tokenizer import load_tokenizer

            tokenizer = load_tokenizer(folder)
            self._count = lambda text: sum(len(part.ids) for part in tokenizer.encode([text], max_length=1 << 24)[0])
            self._positions = min(_MOST, _positions(folder))

    def longest(self, table: Table, columns: Sequence[str]) -> int:
        """Returns a `max_length` that 99 of 100 rows keep, their texts of all columns in one; at most the positions of
        the model."""
        step = max(1, len(table) // _ROWS)
        lengths = sorted(
            sum(self._count(_text(row[column])) + 2 for column in columns if row[column] is not None)
            for row in table.rows[::step]
        )
        found = lengths[min(len(lengths) - 1, math.ceil(0.99 * len(lengths)) - 1)]
        return min(self._positions, max(_LEAST, 8 * math.ceil(found / 8)))

    @property
    def positions(self) -> int:
        """The most tokens that the model takes, as far as it is known, and not above 512."""
        return self._positions


def _text(cell: object) -> str:
    """A cell as a text; of a list of candidates the longest, of a list of words all."""
    if isinstance(cell, list):
        words = [str(part) for part in cell]
        return max(words, key=len, default="") if any(" " in word for word in words) else " ".join(words)
    return str(cell)


def _positions(folder: Path) -> int:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return _MOST
    found = next(
        (config[k] for k in ("max_position_embeddings", "n_positions") if isinstance(config.get(k), int)), _MOST
    )
    return found - 2 * (config.get("model_type") in _SHIFTED)
