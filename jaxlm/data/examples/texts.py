"""Text cells of labelled rows: which hold a text, and what is wrong with the others."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")


class TextCells:
    """Reads the texts of a table's rows. Strings are texts, and numbers where the column holds nothing else.

    Args:
      columns: that hold texts; the table has them.
      allow_empty: whether a blank text is one: an answer can be given to it, but nothing learned from it.
    """

    def __init__(self, table: Table, columns: Sequence[str], *, allow_empty: bool) -> None:
        self._table, self._columns, self._allow_empty = table, columns, allow_empty
        self._numeric = {column for column in columns if _only_numbers(table.rows, column)}
        for column in sorted(self._numeric):
            log.info("%s: column %r holds numbers, which are read as texts", table.name, column)

    def read(self, row: int) -> list[str]:
        """Returns the texts of a row.

        Raises:
          UserError: a cell that holds no text.
        """
        return [self._text(row, column) for column in self._columns]

    def _text(self, row: int, column: str) -> str:
        value = self._table.rows[row][column]
        where = f"{self._table.where(row)}: {column}"
        if isinstance(value, str):
            if not self._allow_empty and not value.strip():
                raise UserError(f"{where} is empty; expected a text")
            return value
        if column in self._numeric and _is_number(value):
            return str(value)
        if value is None or value != value:
            raise UserError(f"{where} is missing; expected a text")
        found = {bool: "a boolean", list: "a list", tuple: "a list", dict: "an object"}.get(type(value), "a number")
        raise UserError(f"{where}: expected a text, found {found}")


def _only_numbers(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    values = [row[column] for row in rows if row[column] is not None and row[column] == row[column]]
    return bool(values) and all(map(_is_number, values))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool) and math.isfinite(value)
