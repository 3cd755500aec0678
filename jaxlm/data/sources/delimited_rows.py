"""Rows of csv and tsv files: fields between separators, with a header or with names from the config."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from jaxlm.data.sources.text_files import BadRow, Record, setting, undecoded
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")

_MARKS = {";": "semicolon", "\t": "tab", "|": "vertical bar", ",": "comma"}
_FIELD_LIMIT = 2**31 - 1  # csv's own limit, 128 KiB to a field, is less than a long document


def read_delimited(
    lines: Iterator[str], *, name: str, key: str, delimiter: str, quoting: bool, columns: tuple[str, ...] | None
) -> tuple[tuple[str, ...], Iterator[Record]]:
    """Returns the column names and rows of a csv or tsv file.

    Args:
      lines: the file's lines with their line feeds.
      name: the file's name for messages.
      key: config key of the source for messages.
      delimiter: "," or tab.
      quoting: whether double quotes enclose fields, which may then hold delimiters and line feeds.
      columns: names for a file without a header; None: the first row is the header.
    Raises:
      UserError: a header with an empty or repeated name; a quote that is never closed, because no one can
        tell which rows it swallowed.
    """
    fields = (_quoted if quoting else _unquoted)(lines, name, key, delimiter)
    if columns is not None:
        first = list(islice(fields, 1))
        _check_no_header([] if not first or isinstance(first[0][1], BadRow) else first[0][1], columns, name, key)
        return columns, _rows(chain(first, fields), columns, quoting, delimiter, key)
    header = next((row for _, row in fields if row), None)
    if isinstance(header, BadRow):
        raise UserError(f"{name}, header: {header.problem}")
    columns = tuple(field.strip() for field in header or ())
    if (bad := undecoded("".join(columns))) is not None:
        raise UserError(f"{name}, header: {bad.problem}")
    _check_header(columns, name, key, delimiter)
    if len(columns) > 1 and columns[0] == "":
        log.info("%s: the first column has no name, as an index that pandas wrote; it is ignored", name)
        return columns[1:], _without_index(_rows(fields, columns, quoting, delimiter, key, named=True))
    return columns, _rows(fields, columns, quoting, delimiter, key, named=len(columns) > 1)


def _without_index(records: Iterator[Record]) -> Iterator[Record]:
    for line, row in records:
        yield line, row if isinstance(row, BadRow) else {column: value for column, value in row.items() if column}


def _check_no_header(first: Sequence[str], columns: tuple[str, ...], name: str, key: str) -> None:
    """Refuses names for a file whose first line holds them already."""
    found = [field.strip().casefold() for field in first]
    same = sum(ours.casefold() == theirs for ours, theirs in zip(columns, found, strict=False))
    if len(first) == len(columns) and (same > 1 or same and same == sum(map(bool, found))):
        raise UserError(
            f"{name}: the first line holds the names of columns ({', '.join(first)}), as {setting(key, 'columns')} "
            f"does: it is a header; leave {setting(key, 'columns')} out"
        )


def _check_header(columns: tuple[str, ...], name: str, key: str, delimiter: str) -> None:
    other = next((mark for mark in _MARKS if mark != delimiter and mark in "".join(columns)), None)
    if len(columns) == 1 and other is not None:
        raise UserError(
            f"{name}: the first line has no {_MARKS.get(delimiter, delimiter)} but {_MARKS[other]}s; if these stand "
            f"between the fields, set {setting(key, 'separator', json.dumps(other))}"
        )
    if any("\r" in column for column in columns):
        raise UserError(f"{name}: a carriage return stands in the first line; expected lines that end in a line feed")
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    option = setting(key, "columns")
    advice = f"rename it in the file; or, if the first line is a row and no header, name the columns in {option}"
    if repeated:
        raise UserError(f"{name}: the header names column {repeated[0]!r} more than once; {advice}")
    if "" in columns[1:]:
        raise UserError(f"{name}: column {columns.index('', 1) + 1} of the header has no name; {advice}")


def _rows(
    fields: Iterator[tuple[int, list[str] | BadRow]],
    columns: tuple[str, ...],
    quoting: bool,
    delimiter: str,
    key: str,
    *,
    named: bool = False,
) -> Iterator[Record]:
    """Yields the records of lines of fields.

    Args:
      named: the names come from the file's first line, which may stand elsewhere once more, as where files were joined.
    """
    for line, row in fields:
        if isinstance(row, BadRow):
            yield line, row
        elif named and row and row[0].strip() == columns[0] and [field.strip() for field in row] == list(columns):
            yield line, BadRow("the names of the columns stand here once more; remove the line")
        elif len(row) == len(columns):
            yield line, dict(zip(columns, row, strict=True))
        elif not row:
            if len(columns) == 1:  # elsewhere a blank line is no row
                yield line, {columns[0]: ""}
        else:
            problem = f"expected {_count(len(columns))} ({', '.join(columns)}), found {len(row)}"
            if not quoting and any(field.startswith('"') for field in row):
                problem += f"; if double quotes enclose fields, set {setting(key, 'quoting', 'true')}"
            other = next((m for m in _MARKS if m != delimiter and row and row[0].count(m) == len(columns) - 1), None)
            if len(row) == 1 and other is not None:
                advice = setting(key, "separator", json.dumps(other))
                problem += f"; if {_MARKS[other]}s stand between the fields, set {advice}"
            elif len(row) == 1 and 1 < len(row[0].split()) == len(columns):
                problem += f"; if a word and its tags stand on each line, set {setting(key, 'format', 'conll')}"
            yield line, BadRow(problem)


def _count(fields: int) -> str:
    return "1 field" if fields == 1 else f"{fields} fields"


def _unquoted(lines: Iterator[str], name: str, key: str, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        yield number, line.split(delimiter) if line else []


def _quoted(lines: Iterator[str], name: str, key: str, delimiter: str) -> Iterator[tuple[int, list[str] | BadRow]]:
    csv.field_size_limit(_FIELD_LIMIT)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        start = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if reader.line_num > start or "unexpected end of data" in str(error):
                raise UserError(
                    f"{name}: a double quote opened in the row at line {start} is not closed properly by line "
                    f"{reader.line_num} ({error}); fix that row, or, if quotes are ordinary characters in this file, "
                    f"set {setting(key, 'quoting', 'false')}"
                ) from None
            if "new-line character" in str(error):
                yield start, BadRow("a carriage return stands in a field without quotes; quote the field or remove it")
            else:
                yield (
                    start,
                    BadRow(
                        f"misplaced double quote: {error}; if quotes are ordinary characters, set "
                        f"{setting(key, 'quoting', 'false')}"
                    ),
                )
        else:
            yield start, row
