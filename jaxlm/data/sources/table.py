"""`Table`: the rows of one split in memory, each with its place in the file it came from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from jaxlm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Table:
    """Rows of one split.

    Attributes:
      name: what messages call the source: "data/x.tsv", "tfds glue/sst2:test", "data.train.rows".
      columns: column names; every row holds them all.
      rows: column -> value (str, int, float, bool, list, or None where a row lacks the column).
      lines: 1-based line of the file at which each row starts; the row number where a format has no lines.
      numbers: 1-based number of each row in the source, bad rows counted; absent: 1, 2, 3, ...
      skipped: bad rows that were skipped.
      hint: ends the message about a missing column, for instance that the first line was read as the header.
      files: of several files, the one that each row stands in; absent: `name` is the only one.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    lines: tuple[int, ...]
    skipped: int = 0
    numbers: tuple[int, ...] | None = None
    hint: str = ""
    files: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, i: int) -> str:
        """Returns the place of row `i` (from 0) in words: "data/x.tsv, row 17 (line 18)"."""
        return place(self.name if self.files is None else self.files[i], self.number(i), self.lines[i])

    def number(self, i: int) -> int:
        """Returns the number of row `i` (from 0) in the source; of several files, in its file."""
        return self.numbers[i] if self.numbers is not None else i + 1

    def require(self, *columns: str, key: str) -> None:
        """Checks that the columns exist.

        Args:
          columns: names that must be there.
          key: the config key that asks for them, for instance "task.text".
        Raises:
          UserError: names the source, the missing column, the columns there are and the nearest one.
        """
        for column in columns:
            if column not in self.columns:
                message = f"{self.name}: no column {column!r}, which {key} asks for; its columns are: "
                message += ", ".join(repr(name) for name in self.columns) + did_you_mean(column, self.columns)
                raise UserError(message + (f"; {self.hint}" if self.hint else ""))

    def replace_rows(self, rows: tuple[dict[str, Any], ...]) -> Table:
        """Returns the table with other values in the same places, one row for each of its rows."""
        if len(rows) != len(self.rows):
            raise ValueError(f"expected {len(self.rows)} rows, got {len(rows)}")
        return replace(self, rows=rows)

    def select(self, indices: Iterable[int]) -> Table:
        """Returns the rows at `indices` (from 0), with their places in the file."""
        kept = list(indices)
        numbers = self.numbers if self.numbers is not None else range(1, len(self) + 1)
        return replace(
            self,
            rows=tuple(self.rows[i] for i in kept),
            lines=tuple(self.lines[i] for i in kept),
            numbers=tuple(numbers[i] for i in kept),
            files=None if self.files is None else tuple(self.files[i] for i in kept),
        )


def join(tables: Sequence[Table], name: str) -> Table:
    """Returns the rows of tables one behind the other, each with its place; columns and hint are those of the first.

    Args:
      name: what messages call the whole.
    """
    files = tuple(chain.from_iterable(t.files or (t.name,) * len(t) for t in tables))
    return Table(
        name,
        tables[0].columns,
        tuple(chain.from_iterable(t.rows for t in tables)),
        tuple(chain.from_iterable(t.lines for t in tables)),
        sum(t.skipped for t in tables),
        tuple(chain.from_iterable(t.numbers or range(1, len(t) + 1) for t in tables)),
        tables[0].hint,
        None if set(files) <= {name} else files,
    )


def place(name: str, number: int, line: int) -> str:
    """Returns a row's place in words, without the line where it equals the row's number."""
    return f"{name}, row {number}" + (f" (line {line})" if line != number else "")
