"""Thins out labels of the training rows, so that a set becomes as skewed as one wants to study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError, did_you_mean


def thin_labels(
    table: Table, text_columns: Sequence[str], label_columns: Sequence[str], shares: Mapping[str, float]
) -> Table:
    """Returns the table with a share of the rows of each label in `shares`, rounded to whole rows, at least one.

    Which rows stay depends on their texts alone, not on their order or on other rows; of a larger share, those of a
    smaller one stay, too.

    Args:
      label_columns: of a task with one label to a row, its column.
    Raises:
      UserError: a task that has several label columns, or a label that no row has.
    """
    if len(label_columns) != 1:
        raise UserError("data.keep_labels: this task has no one label to a row; leave it out")
    [column] = label_columns
    if any(isinstance(row.get(column), list | tuple) for row in table.rows):
        raise UserError("data.keep_labels: rows of several labels have no one label to be thinned by; leave it out")
    labels = [str(row.get(column)) for row in table.rows]
    kept = set(range(len(labels)))
    for label, share in shares.items():
        rows = [i for i, found in enumerate(labels) if found == label]
        if not rows:
            known = sorted(set(labels))
            raise UserError(
                f"data.keep_labels: {table.name} has no row with the label {label!r}{did_you_mean(label, known)}"
            )
        rows.sort(key=lambda i: _draw(json.dumps([table.rows[i].get(name) for name in text_columns], default=str)))
        kept.difference_update(rows[max(1, round(share * len(rows))) :])
    return table.select(sorted(kept))


def _draw(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
