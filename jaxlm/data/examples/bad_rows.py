"""What becomes of rows that no example can be made of: refused, or left out and said."""

from __future__ import annotations

import logging

from jaxlm.data.config import DataConfig
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")


class BadRows:
    """The bad rows of a table, as `data.on_bad_row` treats them.

    Args:
      labelled: the rows are those of a split; otherwise they are to be answered, and the error stands in their line.
      key: config key of the table, for the warning.

    Attributes:
      errors: by the number of the row: what is wrong with it.
    """

    def __init__(self, table: Table, data: DataConfig, *, labelled: bool, key: str) -> None:
        self._table, self._stop, self._labelled, self._key = table, data.on_bad_row == "stop", labelled, key
        self.errors: dict[int, str] = {}

    def add(self, row: int, error: UserError) -> None:
        """Leaves a row out.

        Args:
          error: names the row and says what is wrong.
        Raises:
          UserError: no row may be left out.
        """
        if self._stop:
            raise UserError(f"{error}{' (data.on_bad_row=skip leaves it out)' if self._labelled else ''}") from None
        self.errors[row] = str(error)

    def say(self) -> None:
        """Logs how many rows of a split are left out, and why the first is."""
        if self._labelled and self.errors:
            log.warning("%s (%s): %d of %d rows are bad and were skipped; the first: %s", self._key, self._table.name,
                        len(self.errors), len(self._table), next(iter(self.errors.values())))  # fmt: skip
