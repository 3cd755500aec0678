"""What is found in one split: labels, lengths, rows that cannot be used, texts that stand there more than once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.data.examples.held_out import labels_of_cell, text_of_row
from jaxlm.data.sources.copy_groups import group_copies
from jaxlm.data.sources.table import Table
from jaxlm.report.sections import excerpt

SHOWN = 10
"""Places that are listed of each finding."""
_EXCERPT = 80
"""Characters of a text that are shown."""
_BINS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Found:
    """How many rows something is found in, and where it is in the first of them."""

    rows: int
    places: Sequence[str]

    def json(self) -> dict[str, Any]:
        return {"rows": self.rows, "first": list(self.places)}


@dataclass(frozen=True)
class Lengths:
    """Lengths of the rows of a split, uncut.

    Attributes:
      unit: "tokens", special tokens included; or "words", where there is no tokenizer.
      histogram: rows by the length that they have at most; the last has no bound.
      limit: what longer rows are cut or read in windows at; None: words are counted.
      longer: rows that are.
    """

    unit: str
    median: int
    share_95: int
    longest: int
    histogram: Sequence[tuple[int | None, int]]
    limit: int | None = None
    longer: int = 0

    def json(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "median": self.median,
            "95_percent_at_most": self.share_95,
            "longest": self.longest,
            "histogram": [{"at_most": bound, "rows": rows} for bound, rows in self.histogram],
            "limit": self.limit,
            "longer_rows": self.longer,
        }


@dataclass(frozen=True)
class SplitCheck:
    """The findings of a split.

    Attributes:
      name: train, validation or test.
      source: what messages call its table.
      rows: how many there are, those that cannot be used included.
      unreadable: rows that the reader had to pass over.
      unusable: rows that no example can be made of, an empty text or a missing label for instance; the first with why.
      labels: rows of each label, the most frequent first; {}: the task has no one label to a row.
      lengths: by what is read: "text", and of tasks that write "target".
      equal: rows whose texts stand in an earlier row.
      contradicting: rows whose texts stand in another row with another label.
      near: rows whose texts are nearly those of another row, and not equal to those of an earlier one.
    """

    name: str
    source: str
    rows: int
    unreadable: int
    unusable: Found
    labels: Mapping[str, int]
    lengths: Mapping[str, Lengths]
    equal: Found
    contradicting: Found
    near: Found

    def json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "rows": self.rows,
            "unreadable_rows": self.unreadable,
            "unusable": self.unusable.json(),
            "labels": dict(self.labels),
            "lengths": {name: lengths.json() for name, lengths in self.lengths.items()},
            "equal_texts": self.equal.json(),
            "equal_texts_with_other_labels": self.contradicting.json(),
            "nearly_equal_texts": self.near.json(),
        }


def measure_lengths(lengths: Sequence[int], unit: str, limit: int | None) -> Lengths:
    """Sums up lengths, of at least one row."""
    found = np.asarray(lengths, np.int64)
    bounds = [bound for bound in _BINS if bound < found.max()] + [bound for bound in _BINS if bound >= found.max()][:1]
    places = np.searchsorted(bounds, found)
    counts = np.bincount(places, minlength=len(bounds)).tolist()
    histogram = [(bounds[i] if i < len(bounds) else None, count) for i, count in enumerate(counts)]
    median, share_95 = np.percentile(found, [50, 95], method="inverted_cdf").tolist()
    longer = 0 if limit is None else int((found > limit).sum())
    return Lengths(unit, int(median), int(share_95), int(found.max()), histogram, limit, longer)


def count_labels(table: Table, columns: Sequence[str], separator: str | None) -> dict[str, int]:
    """Rows of each label, the most frequent first; {} where there is no label column, or labels hardly repeat."""
    if len(columns) != 1:
        return {}
    counts = Counter(label for row in table.rows for label in labels_of_cell(row.get(columns[0]), separator))
    return {} if 2 * len(counts) > max(4, len(table)) else dict(counts.most_common())


def alike_labels(counts: Mapping[str, int]) -> list[list[str]]:
    """Labels that differ only by case or spaces, those of each kind together, the most frequent first."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for label in sorted(counts, key=lambda label: (-counts[label], label)):
        kinds[" ".join(label.split()).casefold()].append(label)
    return [kind for kind in kinds.values() if len(kind) > 1]


class Copies:
    """The rows of all splits by their texts.

    Args:
      tables: by split.
      columns: of the texts.
      group_columns: of the texts that near-copies are looked for in.
    """

    def __init__(self, tables: Mapping[str, Table], columns: Sequence[str], group_columns: Sequence[str]) -> None:
        self._tables = tables
        self._exact = {name: [text_of_row(row, columns) for row in table.rows] for name, table in tables.items()}
        texts = [text_of_row(row, group_columns) for table in tables.values() for row in table.rows]
        groups = iter(group_copies(texts))
        self._near = {name: [next(groups) for _ in table.rows] for name, table in tables.items()}

    def equal(self, split: str) -> Found:
        """Rows whose texts stand in an earlier row of the split."""
        first: dict[str, int] = {}
        pairs = [(i, split, first.setdefault(text, i)) for i, text in enumerate(self._exact[split])]
        return self._found(split, [pair for pair in pairs if pair[0] != pair[2]])

    def contradicting(self, split: str, labels: Sequence[str]) -> Found:
        """Rows whose texts have another label in another row of the split."""
        found: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for i, (text, label) in enumerate(zip(self._exact[split], labels, strict=True)):
            found[text].setdefault(label, i)
        others = [
            (i, split, next(j for other, j in found[text].items() if other != label))
            for i, (text, label) in enumerate(zip(self._exact[split], labels, strict=True))
            if len(found[text]) > 1
        ]
        return self._found(split, others)

    def nearly_equal(self, split: str) -> Found:
        """Rows with a near-copy in the split, each text once."""
        first: dict[str, int] = {}
        members: defaultdict[str, list[int]] = defaultdict(list)
        for i, (text, group) in enumerate(zip(self._exact[split], self._near[split], strict=True)):
            if first.setdefault(text, i) == i:
                members[group].append(i)
        pairs = [
            (i, split, rows[0] if i != rows[0] else rows[1]) for rows in members.values() for i in rows if len(rows) > 1
        ]
        return self._found(split, sorted(pairs))

    def shared(self, split: str, other: str, *, near: bool) -> Found:
        """Rows of a split whose texts also stand in another, equal or nearly so."""
        texts = self._near if near else self._exact
        there: dict[str, int] = {}
        for j, text in enumerate(texts[other]):
            there.setdefault(text, j)
        pairs = [(i, other, there[text]) for i, text in enumerate(texts[split]) if text in there]
        return self._found(split, pairs)

    def _found(self, split: str, pairs: Sequence[tuple[int, str, int]]) -> Found:
        """What is found in rows of a split, each with the split and the row that its texts are like."""
        table = self._tables[split]
        return Found(
            len(pairs),
            [
                f"{table.where(i)}, as {self._tables[other].where(j)}: {excerpt(self._exact[split][i], _EXCERPT)}"
                for i, other, j in pairs[:SHOWN]
            ],
        )
