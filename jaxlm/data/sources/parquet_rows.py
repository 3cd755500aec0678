"""Rows of parquet files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from jaxlm.data.sources.text_files import COMPRESSED, BadRow, Record, open_binary
from jaxlm.errors import UserError


def open_parquet(path: Path, stack: ExitStack, only: str | None) -> tuple[tuple[str, ...], ParquetRecords]:
    """Opens a parquet file; returns the names of its columns, and its rows.

    Args:
      stack: closes it.
      only: the one column that will be used; others are not read.
    Raises:
      UserError: no parquet file, or one of two columns with one name.
    """
    content: Any = path
    if path.suffix in COMPRESSED:  # parquet is read from its end
        content = stack.enter_context(tempfile.TemporaryFile())
        with open_binary(path) as (_, stream):
            shutil.copyfileobj(stream, content)
    try:
        file = stack.enter_context(pyarrow.parquet.ParquetFile(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None
    columns = tuple(file.schema_arrow.names)
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: the schema names a column more than once: {', '.join(columns)}")
    records = ParquetRecords(file, path, None if only is None or only not in columns else [only])
    return columns, records


class ParquetRecords:
    """The rows of a parquet file, a batch in memory at a time."""

    def __init__(self, file: pyarrow.parquet.ParquetFile, path: Path, columns: list[str] | None) -> None:
        self._file, self._path, self._columns, self._number = file, path, columns, 0

    def fraction(self) -> float:
        """Returns the share of the rows that has been read."""
        return self._number / max(1, self._file.metadata.num_rows)

    def __iter__(self) -> Iterator[Record]:
        try:
            for batch in self._file.iter_batches(batch_size=1024, columns=self._columns):
                for row in batch.to_pylist():
                    self._number += 1
                    yield self._number, _decode_bytes(row)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{self._path}: cannot be read after row {self._number}: {error}") from None


def _decode_bytes(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    """Decodes binary columns, which hold UTF-8 text that its writer did not mark as text."""
    for column, value in row.items():
        if isinstance(value, bytes):
            try:
                row[column] = value.decode("utf-8")
            except UnicodeDecodeError:
                return BadRow(f"column {column!r} holds bytes that are not UTF-8 text")
    return row
