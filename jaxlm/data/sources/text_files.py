"""Reads text, jsonl, csv and tsv files, plain, .gz or .zst, row by row, with the line at which each row starts."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from jaxlm.errors import UserError

_ENCODING_HINTS = "common ones: latin-1, cp1252 (Western), gb18030 (Chinese), shift_jis (Japanese), utf-16"
_FIELD_LIMIT = 2**31 - 1  # csv's own limit, 128 KiB to a field, is less than a long document


@dataclass(frozen=True)
class BadRow:
    """Stands where a row could not be read."""

    problem: str


Record = tuple[int, dict[str, Any] | BadRow]
"""The line at which a row starts, and the row."""


@dataclass(frozen=True)
class TextFile:
    """An open text file, with how much of it has been read."""

    text: io.TextIOWrapper
    raw: io.BufferedReader
    size: int

    def fraction(self) -> float:
        """Returns the share that has been read, from 0 to 1, by bytes of the file as it lies on disk."""
        return 1.0 if self.raw.closed or not self.size else self.raw.tell() / self.size


@contextmanager
def open_text(path: Path, encoding: str, key: str) -> Iterator[TextFile]:
    """Opens a text file, decompressed where its name ends in .gz or .zst, without a byte-order mark.

    Only a line feed ends a line: a carriage return, U+2028 or U+0085 inside a text does not.

    Raises:
      UserError: wrong encoding (with the byte offset), unknown encoding, broken gzip or zstd, unreadable file.
    """
    try:
        codec = codecs.lookup(encoding).name
        b" ".decode(codec)  # refuses codecs that are not of text, such as hex
    except UnicodeDecodeError:  # a text encoding, of which one byte is not a character
        pass
    except LookupError:
        raise UserError(f"{key}.encoding: unknown encoding {encoding!r}; {_ENCODING_HINTS}") from None
    codec = "utf-8-sig" if codec == "utf-8" else codec
    try:
        with open_binary(path) as (raw, stream), io.TextIOWrapper(stream, encoding=codec, newline="\n") as text:
            yield TextFile(text, raw, os.fstat(raw.fileno()).st_size)
    except UnicodeDecodeError:
        raise UserError(_undecodable(path, encoding, key)) from None


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[io.BufferedReader, Any]]:
    """Opens a file; yields it as it lies on disk, and its content, decompressed where its name ends in .gz or .zst.

    Raises:
      UserError: broken gzip or zstd, unreadable file.
    """
    try:
        with path.open("rb") as raw, _decompressed(path, raw) as stream:
            yield raw, stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: not a whole gzip file ({error}); copy or download it again") from None
    except OSError as error:
        if path.suffix == ".zst" and error.errno is None:
            raise UserError(f"{path}: not a whole zstd file ({error}); copy or download it again") from None
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None


def _decompressed(path: Path, raw: io.BufferedReader) -> Any:
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".zst":
        return pyarrow.input_stream(raw, compression="zstd")
    return raw


def _undecodable(path: Path, encoding: str, key: str) -> str:
    """Returns the message for a file that is not in `encoding`.

    It reads the file again, since a stream's error knows no offset.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, line, beginning, byte, more = 0, 1, b"", 0, True
    with path.open("rb") as raw, _decompressed(path, raw) as stream:
        while more:
            block = stream.read(1 << 20)
            beginning, more = beginning or block[:2], bool(block)
            held = decoder.getstate()[0]  # the first bytes of a character whose others are in this block
            try:
                decoder.decode(block, final=not more)
            except UnicodeDecodeError as error:
                content = held + block
                offset += error.start - len(held)
                line += content.count(b"\n", 0, error.start)
                byte = content[error.start]
                break
            offset += len(block)
            line += block.count(b"\n")
    hint = "the file begins as UTF-16 does: " if beginning in (b"\xff\xfe", b"\xfe\xff") else ""
    advice = f"set {key}.encoding to the file's own ({_ENCODING_HINTS}), or convert the file"
    if key.startswith("--"):  # a command's option, beside which there is none for encodings
        advice = f"convert the file to {encoding}"
    where = f"byte {byte:#04x} at byte offset {offset} (line {line})"
    return f"{path}: not {encoding}: {where} cannot be decoded; {hint}{advice}"


def read_jsonl(lines: Iterable[str]) -> Iterator[Record]:
    """Yields the JSON object of each line; skips blank lines."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, BadRow(f"not valid JSON: {error.msg}, column {error.colno}{_list_hint(line)}")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of nested lists
            yield number, BadRow(f"not readable JSON: {error}")
        else:
            yield number, _checked(value, line)


def _list_hint(line: str) -> str:
    if not line.startswith("["):
        return ""
    return "; the file seems to be one JSON list: jsonl holds one object to a line, without commas between"


def _checked(value: Any, line: str) -> dict[str, Any] | BadRow:
    if not isinstance(value, dict):
        names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
        found = names.get(type(value), "a number")
        return BadRow(f'expected a JSON object such as {{"text": "..."}}, found {found}{_list_hint(line)}')
    if "\\ud" in line.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow("a \\ud... escape stands without the other half of its surrogate pair: no valid text")
    return value


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
    if columns is None:
        header = next((row for _, row in fields if row), None)
        if isinstance(header, BadRow):
            raise UserError(f"{name}, header: {header.problem}")
        columns = tuple(field.strip() for field in header or ())
        _check_header(columns, name, key)
    return columns, _rows(fields, columns, quoting)


def _check_header(columns: tuple[str, ...], name: str, key: str) -> None:
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    advice = f"rename it in the file; or, if the first line is a row and no header, name the columns in {key}.columns"
    if repeated:
        raise UserError(f"{name}: the header names column {repeated[0]!r} more than once; {advice}")
    if "" in columns and len(columns) > 1:
        raise UserError(f"{name}: column {columns.index('') + 1} of the header has no name; {advice}")


def _rows(
    fields: Iterator[tuple[int, list[str] | BadRow]], columns: tuple[str, ...], quoting: bool
) -> Iterator[Record]:
    for line, row in fields:
        if isinstance(row, BadRow):
            yield line, row
        elif len(row) == len(columns):
            yield line, dict(zip(columns, row, strict=True))
        elif not row:
            if len(columns) == 1:  # elsewhere a blank line is no row
                yield line, {columns[0]: ""}
        else:
            problem = f"expected {_count(len(columns))} ({', '.join(columns)}), found {len(row)}"
            if not quoting and any(field.startswith('"') for field in row):
                problem += "; if double quotes enclose fields, set quoting: true"
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
                    f"set {key}.quoting: false"
                ) from None
            yield start, BadRow(f"misplaced double quote: {error}; if quotes are ordinary characters, quoting: false")
        else:
            yield start, row
