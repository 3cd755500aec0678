"""Validation and test rows that are split off the training rows by a hash of their texts."""

from __future__ import annotations

import hashlib
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.copy_groups import group_copies
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")

_ORDER = ("test", "validation")
"""Test rows are split off first, so that they stay whatever becomes of the validation rows."""
_TOLERANCE = 0.2
_SHOWN = 20


@dataclass(frozen=True)
class _Group:
    """Rows that stay on one side: their number in the table, what they are drawn by, and their label."""

    rows: list[int]
    text: str
    stratum: str


def hold_out_shares(
    table: Table,
    shares: Mapping[str, SourceConfig],
    group_columns: Sequence[str],
    label_columns: Sequence[str],
    label_separator: str | None = None,
) -> dict[str, Table]:
    """Splits off the splits that `shares` names; returns them, and under "train" what is left, in the table's order.

    Rows whose texts are equal or nearly so stay together. Whether such a group is held out depends on a hash of its
    text, not on the order of the rows, nor on other rows as long as the hashes hold out about the share of its label;
    where they would be off by more than a fifth, as many as that allows are held out, those of the lowest hashes. A
    label of one group, and a group larger than what its label may give, stay in training.

    Args:
      shares: split -> its source, with `fraction` (of all rows of the table) and `seed`.
      group_columns: whose texts are compared.
      label_columns: of a task with one label column, that column; else anything.
      label_separator: what stands between several labels of a cell.
    Raises:
      UserError: nothing could be held out.
    """
    groups = _groups(table, group_columns, _strata(table, label_columns, label_separator))
    made: dict[str, Table] = {}
    left = 1.0
    for split in (split for split in _ORDER if split in shares):
        fraction, seed = shares[split].fraction or 0.0, shares[split].seed
        chosen = _choose(groups, fraction / left, f"{seed} {split}")
        if not chosen:
            raise UserError(
                f"data.{split}.fraction={fraction:g}: nothing can be held out of the {len(table)} rows of "
                f"{table.name}, in which {len(groups)} groups of texts are not copies of one another; expected more "
                f"rows, a larger fraction, or rows of its own (data.{split}.path)"
            )
        left -= fraction
        made[split] = table.select(sorted(row for group in chosen for row in group.rows))
        _say(split, table, chosen, fraction)
        taken = {id(group) for group in chosen}
        groups = [group for group in groups if id(group) not in taken]
    return {**made, "train": table.select(sorted(row for group in groups for row in group.rows))}


def _say(split: str, table: Table, chosen: Sequence[_Group], fraction: float) -> None:
    counts = Counter[str]()
    for group in chosen:
        counts[group.stratum] += len(group.rows)
    rows = counts.total()
    labels = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())[:_SHOWN] if name)
    more = ", ..." if len(counts) > _SHOWN else ""
    log.info(
        "data.%s: %d of the %d rows of %s are held out (fraction %g%s), in %d groups of equal or nearly equal texts",
        split, rows, len(table), table.name, fraction, f": {labels}{more}" if labels else "", len(chosen),
    )  # fmt: skip


def _groups(table: Table, columns: Sequence[str], strata: Sequence[str]) -> list[_Group]:
    """The groups of a table, each with the label that most of its rows have."""
    members: defaultdict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(group_copies([text_of_row(row, columns) for row in table.rows])):
        members[text].append(i)
    groups: list[_Group] = []
    for text, rows in members.items():
        counts = Counter(strata[i] for i in rows)
        groups.append(_Group(rows, text, min(counts, key=lambda label: (-counts[label], label))))
    return groups


def _choose(groups: Sequence[_Group], share: float, salt: str) -> list[_Group]:
    """The groups that are held out, label by label."""
    by_stratum: defaultdict[str, list[tuple[float, _Group]]] = defaultdict(list)
    for group in groups:
        by_stratum[group.stratum].append((_draw(f"{salt} {group.text}"), group))
    chosen: list[_Group] = []
    for _, drawn in sorted(by_stratum.items()):
        wanted = share * sum(len(group.rows) for _, group in drawn)
        most = max(1, math.floor((1 + _TOLERANCE) * wanted + 1e-9))
        least = min(most, math.ceil((1 - _TOLERANCE) * wanted - 1e-9)) if wanted >= 0.5 else 0
        held, taken = 0, 0
        for draw, group in sorted(drawn, key=lambda pair: (pair[0], pair[1].text)):
            if (draw < share or held < least) and held + len(group.rows) <= most and taken + 1 < len(drawn):
                chosen.append(group)
                held, taken = held + len(group.rows), taken + 1
    return chosen


def _draw(text: str) -> float:
    """A number from 0 to 1 that a text decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def text_of_row(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Returns the texts of a row as one, those of lists joined by spaces."""
    cells = (row.get(column) for column in columns)
    return "\n".join(" ".join(map(str, cell)) if isinstance(cell, list) else str(cell) for cell in cells)


def _strata(table: Table, columns: Sequence[str], separator: str | None) -> list[str]:
    """The label of each row; of several, the rarest; "" of all rows where labels hardly repeat."""
    if len(columns) != 1:
        return [""] * len(table)
    labels = [labels_of_cell(row.get(columns[0]), separator) for row in table.rows]
    counts = Counter(label for several in labels for label in several)
    if not counts or 2 * len(counts) > len(table):
        return [""] * len(table)
    return [min(several, key=lambda label: (counts[label], label), default="") for several in labels]


def labels_of_cell(cell: Any, separator: str | None) -> list[str]:
    """Returns the labels that a cell names: one, several of a list or between separators, the places of ones."""
    if isinstance(cell, list):
        hot = len(cell) > 1 and all(value in (0, 1) for value in cell)
        return [str(i) for i, value in enumerate(cell) if value] if hot else [str(value) for value in cell]
    if isinstance(cell, str) and separator is not None:
        return [name.strip() for name in cell.split(separator) if name.strip()]
    return [] if cell is None or isinstance(cell, dict) else [str(cell)]
