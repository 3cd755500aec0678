"""Opens sources of any kind (files, rows in the config, TFDS, built-in data), and loads a split as a `Table`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources import stdlib_docstrings, tfds
from jaxlm.data.sources.files import RowReader, check_file, file_format, open_rows
from jaxlm.data.sources.installed_docstrings import InstalledDocstrings
from jaxlm.data.sources.json_rows import read_json
from jaxlm.data.sources.parallel_rows import read_parallel
from jaxlm.data.sources.table import Table, place
from jaxlm.data.sources.text_files import BadRow, Record
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")


def load(source: SourceConfig, *, key: str, split: str, on_bad_row: str = "stop") -> Table:
    """Reads one split of labeled rows.

    Args:
      source: where the split comes from, and how it is read.
      key: config key of the source for messages, for instance "data.train".
      split: TFDS or built-in split, unless `source.split` names one.
      on_bad_row: "stop", or "skip": bad rows are counted, logged and left out.
    Returns:
      The rows, with columns renamed by `source.rename`.
    Raises:
      UserError: whatever cannot be read, with its file, row and key.
    """
    if source.mixture is not None or isinstance(source.path, tuple):
        raise UserError(f"{key}: labeled rows come from one source; a mixture or a list of files is for pretraining")
    if source.format == "text" and not isinstance(source.path, dict) or source.builtin == "installed_docstrings":
        raise UserError(f"{key}: {source.builtin or 'plain text'} has no labels; it is for pretraining")
    formats = []
    if isinstance(source.path, dict):
        for column, path in source.path.items():
            check_file(Path(path), f"{key}.path.{column}")
        formats = ["parallel"]
    elif source.path is not None:
        check_file(Path(source.path), f"{key}.path")
        formats = [file_format(Path(source.path), source, key)]
    check_keys(source, key, formats)
    with ExitStack() as stack:
        reader = open_source(source, key=key, split=split, stack=stack, lenient=on_bad_row == "skip")
        table = _collect(reader, key, on_bad_row, source.limit)
    return _rename(table, source.rename, key)


def open_source(
    source: SourceConfig,
    *,
    key: str,
    split: str,
    stack: ExitStack,
    file: Path | None = None,
    column: str | None = None,
    lenient: bool = False,
) -> RowReader:
    """Opens a source of rows of any kind but a mixture; the stack closes it.

    Args:
      source: where the rows come from.
      key: config key of the source for messages.
      split: TFDS or built-in split, unless `source.split` names one.
      file: one of several files of the source; None: `source.path` is the only one.
      column: the one column that will be used, where others need not be read.
      lenient: as in `open_rows`.
    Raises:
      UserError: no such file, data set or split, or one whose beginning cannot be read.
    """
    split = source.split or split
    if isinstance(source.path, dict):
        name, records = read_parallel(source.path, source.encoding, key, lenient=lenient)
        return RowReader(name, records, tuple(source.path))
    if source.path is not None:
        path = file or Path(str(source.path))
        return open_rows(path, file_format(path, source, key), source, key, stack, only=column, lenient=lenient)
    if source.rows is not None:
        return RowReader(f"{key}.rows", _inline(source.rows))
    if source.tfds is not None:
        return RowReader(*tfds.open_split(source.tfds, split, source.data_dir, key))
    name = f"{source.builtin}:{split}"
    if source.builtin == "installed_docstrings":
        texts = InstalledDocstrings(split, source.limit)
        return RowReader(name, enumerate(({"text": text} for text in texts), start=1), ("text",))
    table = stdlib_docstrings.load_docstrings(split)
    return RowReader(name, enumerate(map(dict, table.rows), start=1), table.columns)


def check_keys(source: SourceConfig, key: str, formats: Iterable[str]) -> None:
    """Refuses keys that would be ignored.

    Args:
      formats: of the source's files; empty for a source that is not files.
    Raises:
      UserError: naming the key, and what to use instead.
    """
    formats = set(formats)
    if "parallel" in formats and (source.format not in ("auto", "text") or source.separator is not None):
        wrong = "separator" if source.separator is not None else "format"
        raise UserError(f"{key}.{wrong}: parallel files are plain text, a row to a line; leave it out")
    if source.split and not (source.tfds or source.builtin):
        raise UserError(f"{key}.split: only TFDS and built-in sources have splits; name the split's own file in path")
    if source.data_dir and not source.tfds:
        raise UserError(f"{key}.data_dir: only for a TFDS source ({key}.tfds)")
    if source.columns and not formats & {"csv", "tsv", "conll"}:
        raise UserError(f"{key}.columns: only for csv, tsv and conll files; use {key}.rename to rename columns")
    if source.quoting != "auto" and not formats & {"csv", "tsv"}:
        raise UserError(f"{key}.quoting: only csv and tsv files have quotes around fields; leave it out")
    if source.encoding.lower() not in ("utf-8", "utf8") and not formats - {"parquet"}:
        raise UserError(f"{key}.encoding: only for files of text; leave it out")
    if source.weight != 1.0 and ".mixture[" not in key:
        raise UserError(f"{key}.weight: only for a source of a mixture; leave it out")
    if source.documents != "file" and "text" not in formats:
        kind = ", ".join(sorted(formats)) or "this source"
        raise UserError(f"{key}.documents: only for plain text; in {kind} every row is a document")


def bad_row_error(problem: str) -> UserError:
    """Returns the error for a bad row where `data.on_bad_row` is stop."""
    return UserError(f"{problem}. Correct the row, or set data.on_bad_row=skip to leave such rows out")


def read_jsonl_stream(handle: Iterable[bytes] | Iterable[str], name: str) -> Iterator[Record]:
    """Yields rows of jsonl as they arrive, for instance on stdin; a line that is not UTF-8 is a bad row.

    Args:
      handle: a binary stream of UTF-8 (preferred: its decoding does not depend on the locale), or a text stream.
      name: what messages call it.
    """
    return read_json(_decoded(handle), name)


def rename_records(records: Iterable[Record], rename: Mapping[str, str]) -> Iterator[Record]:
    """Yields rows with their columns renamed."""
    for line, row in records:
        yield line, row if isinstance(row, BadRow) else {rename.get(name, name): value for name, value in row.items()}


def _decoded(handle: Iterable[bytes] | Iterable[str]) -> Iterator[str | BadRow]:
    offset = 0
    for line in handle:
        try:
            text = line.decode("utf-8") if isinstance(line, bytes) else line
            yield text.removeprefix("\ufeff") if offset == 0 else text
        except UnicodeDecodeError as error:
            yield BadRow(
                f"not UTF-8: byte {error.object[error.start]:#04x} at byte offset {offset + error.start} cannot be "
                "decoded; convert the input to UTF-8"
            )
        offset += len(line)


def _inline(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        try:
            json.dumps(row, ensure_ascii=False, default=str).encode()
            yield number, dict(row)
        except UnicodeEncodeError:
            yield number, BadRow("half a surrogate pair stands without the other half: no valid text")


def _collect(reader: RowReader, key: str, on_bad_row: str, limit: int | None) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    numbers: list[int] = []
    problems: list[str] = []
    for number, (line, row) in enumerate(reader.records, start=1):
        if not isinstance(row, BadRow):
            rows.append(row)
            lines.append(line)
            numbers.append(number)
            if len(rows) == limit:
                break
            continue
        problem = f"{place(reader.name, number, line)}: {row.problem}"
        if on_bad_row != "skip":
            raise bad_row_error(problem)
        problems.append(problem)
    if problems:
        total = len(rows) + len(problems)
        log.warning("%s: %d of %d rows are bad and were skipped; the first: %s",
                    reader.name, len(problems), total, problems[0])  # fmt: skip
    if not rows:
        reason = f"all {len(problems)} rows are bad" if problems else "no rows"
        raise UserError(f"{reader.name}: {reason}; {key} needs at least one row")
    columns = reader.columns
    if columns is None:
        columns = tuple(dict.fromkeys(chain.from_iterable(rows)))
        if any(len(row) < len(columns) for row in rows):
            rows = [{column: row.get(column) for column in columns} for row in rows]
    return Table(reader.name, columns, tuple(rows), tuple(lines), len(problems), tuple(numbers), reader.hint)


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
