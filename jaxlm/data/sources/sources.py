"""`load`: one split of data, from a file, inline rows, TFDS or a built-in source, as a `Table`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources import stdlib_docstrings, tfds
from jaxlm.data.sources.files import RowReader, check_file, file_format, open_rows
from jaxlm.data.sources.table import Table, place
from jaxlm.data.sources.text_files import BadRow, Record, read_jsonl
from jaxlm.errors import UserError

__all__ = ["Table", "load", "load_jsonl_stream"]

logger = logging.getLogger("jaxlm")


def load(source: SourceConfig, *, key: str, split: str, on_bad_row: str = "stop") -> Table:
    """Read one split.

    Args:
        source: where the split comes from, and how it is read.
        key: config key of the source for messages, for instance "data.train".
        split: TFDS or built-in split, unless `source.split` names one.
        on_bad_row: "stop", or "skip": bad rows are counted, logged and left out.

    Returns:
        The rows, their columns renamed as `source.rename` asks.

    Raises:
        UserError: naming file, row and key, for whatever cannot be read.
    """
    _check_keys(source, key)
    with ExitStack() as stack:
        if source.builtin is not None:
            table = stdlib_docstrings.load_docstrings(source.split or split)
            table = table.select(range(min(len(table), source.limit or len(table))))
        else:
            if source.tfds is not None:
                opened = RowReader(*tfds.open_split(source.tfds, source.split or split, source.data_dir, key))
            elif source.rows is not None:
                opened = RowReader(f"{key}.rows", _inline(source.rows))
            else:
                opened = _open_file(source, key, stack)
            table = _collect(opened, key, on_bad_row, source.limit)
    return _rename(table, source.rename, key)


def load_jsonl_stream(handle: Iterable[bytes] | Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """Rows of jsonl as they arrive, for instance on stdin.

    Args:
        handle: a binary stream of UTF-8 (preferred: its decoding does not hang on the locale), or a text stream.
        name: what messages call it.

    Raises:
        UserError: at the first bad row, naming it.
    """
    for number, (line, row) in enumerate(read_jsonl(_decoded(handle, name)), start=1):
        if isinstance(row, BadRow):
            raise UserError(f"{place(name, number, line)}: {row.problem}")
        yield row


def _decoded(handle: Iterable[bytes] | Iterable[str], name: str) -> Iterator[str]:
    offset = 0
    for line in handle:
        if isinstance(line, bytes):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name}: not UTF-8: byte {line[error.start]:#04x} at byte offset {offset + error.start} "
                    "cannot be decoded; convert the input to UTF-8"
                ) from None
        else:
            text = line
        yield text.removeprefix("\ufeff") if offset == 0 else text
        offset += len(line)


def _check_keys(source: SourceConfig, key: str) -> None:
    """Refuse keys that would be ignored, and what only a corpus for pretraining may be."""
    if source.mixture is not None or isinstance(source.path, tuple):
        raise UserError(f"{key}: labelled rows come from one source; a mixture or a list of files is for pretraining")
    if source.format == "text" or source.builtin == "installed_docstrings":
        raise UserError(f"{key}: {source.builtin or 'plain text'} has no labels; it is for pretraining")
    if source.split and (source.path or source.rows is not None):
        raise UserError(f"{key}.split: only TFDS and built-in sources have splits; name the split's own file in path")
    if source.data_dir and not source.tfds:
        raise UserError(f"{key}.data_dir: only for a TFDS source ({key}.tfds)")
    if source.columns and not source.path:
        raise UserError(f"{key}.columns: only for csv and tsv files; use {key}.rename to rename columns")


def _open_file(source: SourceConfig, key: str, stack: ExitStack) -> RowReader:
    path = Path(str(source.path))
    check_file(path, key)
    return open_rows(path, file_format(path, source, key), source, key, stack)


def _inline(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    yield from enumerate((dict(row) for row in rows), start=1)


def _collect(opened: RowReader, key: str, on_bad_row: str, limit: int | None) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    numbers: list[int] = []
    problems: list[str] = []
    for number, (line, row) in enumerate(opened.records, start=1):
        if not isinstance(row, BadRow):
            rows.append(row)
            lines.append(line)
            numbers.append(number)
            if len(rows) == limit:
                break
            continue
        problem = f"{place(opened.name, number, line)}: {row.problem}"
        if on_bad_row != "skip":
            raise UserError(f"{problem}. Correct the row, or set data.on_bad_row=skip to leave such rows out")
        problems.append(problem)
    if problems:
        total = len(rows) + len(problems)
        logger.warning("%s: %d of %d rows are bad and were skipped; the first: %s",
                       opened.name, len(problems), total, problems[0])  # fmt: skip
    if not rows:
        reason = f"all {len(problems)} rows are bad" if problems else "no rows"
        raise UserError(f"{opened.name}: {reason}; {key} needs at least one row")
    columns = opened.columns
    if columns is None:
        columns = tuple(dict.fromkeys(chain.from_iterable(rows)))
        if any(len(row) < len(columns) for row in rows):
            rows = [{column: row.get(column) for column in columns} for row in rows]
    return Table(opened.name, columns, tuple(rows), tuple(lines), len(problems), tuple(numbers), opened.hint)


def _rename(table: Table, rename: dict[str, str], key: str) -> Table:
    if not rename:
        return table
    table.require(*rename, key=f"{key}.rename")
    columns = tuple(rename.get(column, column) for column in table.columns)
    for column in columns:
        if columns.count(column) > 1:
            raise UserError(f"{key}.rename: {table.name} would have two columns named {column!r}")
    rows = tuple({rename.get(column, column): value for column, value in row.items()} for row in table.rows)
    return replace(table, columns=columns, rows=rows)
