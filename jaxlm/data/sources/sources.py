"""Opens sources of any kind (files, rows in the config, TFDS, built-in data), and loads a split as a `Table`."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources import stdlib_docstrings, tfds
from jaxlm.data.sources.files import RowReader, file_format, find_files, open_rows, pair_files
from jaxlm.data.sources.installed_docstrings import InstalledDocstrings
from jaxlm.data.sources.json_rows import read_json
from jaxlm.data.sources.parallel_rows import read_parallel
from jaxlm.data.sources.table import Table, join, place
from jaxlm.data.sources.text_files import BadRow, Record
from jaxlm.errors import UserError, did_you_mean

log = logging.getLogger("jaxlm")

File = Path | Mapping[str, Path]
"""A file of rows, or the parallel files that belong together, by their columns."""


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
    if source.mixture is not None:
        raise UserError(f"{key}: labeled rows come from one source; a mixture is for pretraining. Several files stand "
                        f"in a list, {key}.path=[a.csv, b.csv]")  # fmt: skip
    if source.format == "text" and not isinstance(source.path, dict) or source.builtin == "installed_docstrings":
        raise UserError(f"{key}: {source.builtin or 'plain text'} has no labels; it is for pretraining")
    files: Sequence[File | None] = (None,)
    formats = []
    if isinstance(source.path, dict):
        files, formats = pair_files(source.path, f"{key}.path"), ["parallel"]
    elif source.path is not None:
        found = find_files(source.path, f"{key}.path")
        files, formats = found, [file_format(path, source, key) for path in found]
    check_keys(source, key, formats)
    tables: list[Table] = []
    limit = source.limit
    for file in files:
        with ExitStack() as stack:
            reader = open_source(source, key=key, split=split, stack=stack, file=file, lenient=on_bad_row == "skip")
            tables.append(_collect(reader, key, on_bad_row, limit))
        if limit is not None and not (limit := limit - len(tables[-1])):
            break
    return _rename(tables[0] if len(files) == 1 else _join(tables, source, key), source.rename, key)


def _join(tables: Sequence[Table], source: SourceConfig, key: str) -> Table:
    """The rows of several files, which have the same columns."""
    first, *others = tables
    for other in others:
        if absent := [column for column in first.columns if column not in other.columns]:
            lacks, has = other, first
        elif absent := [column for column in other.columns if column not in first.columns]:
            lacks, has = first, other
        else:
            continue
        raise UserError(
            f"{key}.path: {lacks.name} has no column {absent[0]!r}, which {has.name} has; expected the same columns in "
            f"all files{did_you_mean(absent[0], lacks.columns)}"
        )
    given = [source.path] if isinstance(source.path, str) else source.path
    patterns = [first.name, "..."] if isinstance(given, dict) or given is None else given
    shown = ", ".join(patterns[:3]) + (", ..." if len(patterns) > 3 else "")
    return join(tables, f"{shown} ({len(tables)} files)")


def open_source(
    source: SourceConfig,
    *,
    key: str,
    split: str,
    stack: ExitStack,
    file: File | None = None,
    column: str | None = None,
    lenient: bool = False,
) -> RowReader:
    """Opens a source of rows of any kind but a mixture; the stack closes it.

    Args:
      source: where the rows come from.
      key: config key of the source for messages.
      split: TFDS or built-in split, unless `source.split` names one.
      file: one of the source's files, of parallel files those that belong together; None: it has no files.
      column: the one column that will be used, where others need not be read.
      lenient: as in `open_rows`.
    Raises:
      UserError: no such file, data set or split, or one whose beginning cannot be read.
    """
    split = source.split or split
    if isinstance(file, Mapping):
        name, records = read_parallel(file, source.encoding, key, lenient=lenient)
        return RowReader(name, records, tuple(file))
    if file is not None:
        return open_rows(file, file_format(file, source, key), source, key, stack, only=column, lenient=lenient)
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
