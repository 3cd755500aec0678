"""`load`: one split of data, from a file, inline rows, TFDS or a built-in source, as a `Table`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from jaxlm.config_data import SourceConfig
from jaxlm.data import docstrings, tfds
from jaxlm.data.table import Table, nearest, place
from jaxlm.data.textfiles import BadRow, Record, open_lines, read_delimited, read_jsonl
from jaxlm.errors import UserError

__all__ = ["Table", "load", "load_jsonl_stream"]

logger = logging.getLogger("jaxlm")

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
}


@dataclass(frozen=True)
class _Opened:
    """A source whose rows are still to be read; `columns` None: the union of the rows' keys."""

    name: str
    records: Iterator[Record]
    columns: tuple[str, ...] | None = None
    hint: str = ""


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
            table = docstrings.load_docstrings(source.split or split)
            table = table.select(range(min(len(table), source.limit or len(table))))
        else:
            if source.tfds is not None:
                opened = _Opened(*tfds.open_split(source.tfds, source.split or split, source.data_dir, key))
            elif source.rows is not None:
                opened = _Opened(f"{key}.rows", _inline(source.rows))
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


def _open_file(source: SourceConfig, key: str, stack: ExitStack) -> _Opened:
    path = Path(str(source.path))
    _check_exists(path, key)
    kind = _format(path, source, key)
    if source.columns and kind not in ("csv", "tsv"):
        raise UserError(f"{key}.columns: only for csv and tsv files, and {path} is {kind}; use {key}.rename")
    if kind == "parquet":
        return _open_parquet(path, key)
    lines = stack.enter_context(open_lines(path, source.encoding, key))
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path}: the file is empty; {key}.path needs at least one row")
    lines = chain([first], lines)
    if kind == "jsonl":
        return _Opened(str(path), read_jsonl(lines))
    quoting = source.quoting if source.quoting != "auto" else kind == "csv"
    columns, records = read_delimited(
        lines,
        name=str(path),
        key=key,
        delimiter="," if kind == "csv" else "\t",
        quoting=quoting,
        columns=source.columns,
    )
    hint = "" if source.columns else f"the first line was read as the header: if it is a row, set {key}.columns"
    return _Opened(str(path), records, columns, hint)


def _check_exists(path: Path, key: str) -> None:
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{key}.path: {path} is a folder; name a file in it")
    message = f"{key}.path: no file {path}"
    if not path.parent.is_dir():
        message += f"; there is no folder {path.parent} either"
    else:
        there = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
        message += nearest(path.name, there) or (f"; {path.parent} holds: {', '.join(there[:8])}" if there else "")
    if not path.is_absolute():
        message += f" (relative paths are taken from the working directory, {Path.cwd()})"
    raise UserError(message)


def _format(path: Path, source: SourceConfig, key: str) -> str:
    if source.format != "auto":
        return source.format
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix.lower() == ".txt" and source.columns:
        return "tsv"
    if suffix.lower() not in _FORMATS or (path.suffix == ".gz" and suffix.lower() == ".parquet"):
        raise UserError(
            f"{key}.path: the name {path} does not tell the format; set {key}.format to jsonl, csv, tsv or parquet"
            + (f" (or {key}.columns, if it is tab-separated without a header)" if suffix.lower() == ".txt" else "")
        )
    return _FORMATS[suffix.lower()]


def _open_parquet(path: Path, key: str) -> _Opened:
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file: {error}") from None
    columns = tuple(file.schema_arrow.names)
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: the schema names a column more than once: {', '.join(columns)}")
    return _Opened(str(path), _parquet_records(file, path), columns)


def _parquet_records(file: pyarrow.parquet.ParquetFile, path: Path) -> Iterator[Record]:
    number = 0
    try:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, _decode_bytes(row)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read after row {number}: {error}") from None


def _decode_bytes(row: dict[str, Any]) -> dict[str, Any] | BadRow:
    """Binary columns are UTF-8 text that its writer did not mark as text."""
    for column, value in row.items():
        if isinstance(value, bytes):
            try:
                row[column] = value.decode("utf-8")
            except UnicodeDecodeError:
                return BadRow(f"column {column!r} holds bytes that are not UTF-8 text")
    return row


def _inline(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    yield from enumerate((dict(row) for row in rows), start=1)


def _collect(opened: _Opened, key: str, on_bad_row: str, limit: int | None) -> Table:
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
