"""Cross-validation: the training rows divided into folds, one of which is held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.config import FoldConfig
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

KEPT = -1
"""Fold of a row that is never held out."""


def assign_folds(
    table: Table, text_columns: Sequence[str], label_columns: Sequence[str], *, folds: int, seed: int
) -> np.ndarray:
    """Returns the fold of each row, int64 [rows], from 0; `KEPT` of a label that no other text has.

    Rows of the same texts go to the same fold, so that none is scored by a model that has seen it. The texts of each
    label are dealt to the folds in turn, in an order drawn by `seed`, so that a label's counts differ by at most one
    text between folds; where a row has no single label (tags, lists), all texts are dealt alike; numbers are dealt in
    their order. The order of the rows does not matter.

    Args:
      label_columns: of a task with one label to a row, its column; else anything.
      folds: how many.
    """
    texts = [_text(row, text_columns) for row in table.rows]
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    labels = {text: _label(table.rows[i], label_columns) for text, i in first.items()}
    order = sorted(first, key=lambda text: (labels[text], _draw(seed, text)))
    fold = {text: place % folds for place, text in enumerate(order)}
    counts: dict[tuple[float, str], int] = {}
    for label in labels.values():
        counts[label] = counts.get(label, 0) + 1
    if 2 * len(counts) <= len(labels):  # labels that repeat: one without a second text would be unknown in its fold
        fold |= {text: KEPT for text, label in labels.items() if counts[label] == 1 and len(counts) > 1}
    return np.asarray([fold[text] for text in texts], np.int64)


def hold_out(
    table: Table, text_columns: Sequence[str], label_columns: Sequence[str], fold: FoldConfig
) -> tuple[Table, Table]:
    """Returns the training rows less a fold, and the fold, both in the order of the table.

    Raises:
      UserError: fewer texts than folds.
    """
    folds = assign_folds(table, text_columns, label_columns, folds=fold.folds, seed=fold.seed)
    held_out = folds == fold.number
    filled = len(set(folds[folds != KEPT].tolist()))
    if filled < fold.folds:  # of any run, so that the first one says it
        raise UserError(
            f"train.folds={fold.folds}: {table.name} has too few different texts to fill so many folds: they fill "
            f"{filled} (a label's only text is never held out); expected fewer"
        )
    return table.select(np.flatnonzero(~held_out).tolist()), table.select(np.flatnonzero(held_out).tolist())


def _text(row: dict[str, Any], columns: Sequence[str]) -> str:
    return json.dumps([row.get(column) for column in columns], default=str)


def _label(row: dict[str, Any], columns: Sequence[str]) -> tuple[float, str]:
    """What texts are grouped by, in an order: numbers by value, words by spelling."""
    value = row.get(columns[0]) if len(columns) == 1 else None
    if isinstance(value, int | float) and value == value:
        return float(value), ""
    return 0.0, value if isinstance(value, str) else ""


def _draw(seed: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed} {text}".encode()).digest()
