"""Finds the files of a source by name or pattern, tells their format by the name, and opens them row by row."""

from __future__ import annotations

import glob
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.conll_rows import read_conll
from jaxlm.data.sources.delimited_rows import read_delimited
from jaxlm.data.sources.json_rows import read_json
from jaxlm.data.sources.squad_rows import HEAD, is_squad, read_squad
from jaxlm.data.sources.text_files import BadRow, Record, open_binary, open_text, setting
from jaxlm.errors import UserError, did_you_mean
from jaxlm.local_paths import check_local

_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".conll": "conll",
    ".bio": "conll",
    ".iob": "conll",
}
_DELIMITED = ("csv", "tsv", "conll")
_TEXT = (".txt", ".text", ".md")
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class RowReader:
    """A source of rows that is open for reading.

    Attributes:
      name: what messages call it.
      records: the rows.
      columns: their names; None: the union of the rows' keys.
      hint: ends the message about a missing column.
      fraction: how much has been read, from 0 to 1.
    """

    name: str
    records: Iterator[Record]
    columns: tuple[str, ...] | None = None
    hint: str = ""
    fraction: Callable[[], float] = lambda: 0.0


def find_files(patterns: str | Sequence[str], key: str) -> tuple[Path, ...]:
    """Returns the files that names and patterns stand for, each once, in the given order; those of a pattern by name.

    Args:
      key: config key or option for messages, for instance "data.train.path".
    Raises:
      UserError: a file that is not there, or a pattern that no file matches.
    """
    patterns = [patterns] if isinstance(patterns, str) else patterns
    found: dict[Path, None] = {}
    for pattern in patterns:
        check_local(pattern, key)
        if not glob.has_magic(pattern) or Path(pattern).exists():  # a name may hold brackets, too
            check_file(Path(pattern), key)
            found[Path(pattern)] = None
            continue
        files = sorted(Path(name) for name in glob.iglob(pattern, recursive=True) if Path(name).is_file())
        if not files:
            folder = Path(*Path(pattern).parts[: _first_magic(pattern)])
            there = "" if folder.is_dir() else f"; there is no folder {folder}"
            raise UserError(f"{key}: no file matches {pattern}{there}{_working_directory(Path(pattern))}")
        found.update(dict.fromkeys(files))
    return tuple(found)


def _first_magic(pattern: str) -> int:
    return next(i for i, part in enumerate(Path(pattern).parts) if glob.has_magic(part))


def check_file(path: Path, key: str) -> None:
    """Raises UserError, with the nearest name in the folder, where there is no such file."""
    check_local(path, key)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder; name a file in it")
    message = f"{key}: no file {path}"
    if not path.parent.is_dir():
        message += f"; there is no folder {path.parent} either"
    else:
        there = sorted(entry.name for entry in path.parent.iterdir() if entry.is_file())
        message += did_you_mean(path.name, there) or (f"; {path.parent} holds: {', '.join(there[:8])}" if there else "")
    raise UserError(message + _working_directory(path))


def _working_directory(path: Path) -> str:
    return "" if path.is_absolute() else f" (relative paths are taken from the working directory, {Path.cwd()})"


def file_format(path: Path, source: SourceConfig, key: str, *, text: bool = False) -> str:
    """Returns the format: "jsonl", "csv", "tsv", "parquet", "conll", "squad" or, where plain `text` is allowed, "text".

    Raises:
      UserError: the name does not tell.
    """
    if source.format != "auto":
        return source.format
    suffix = plain_suffix(path)
    if suffix == ".txt" and source.columns:
        return "tsv"
    if text and suffix in _TEXT:
        return "text"
    if suffix not in _FORMATS:
        formats = "text, jsonl, csv, tsv or parquet" if text else "jsonl, csv, tsv, parquet or conll"
        raise UserError(
            f"{key if key.startswith('--') else f'{key}.path'}: the name {path} does not tell the format; set "
            f"{setting(key, 'format')} to {formats}"
            + (f" (or {setting(key, 'columns')}, if it is tab-separated without a header)" if suffix == ".txt" else "")
        )
    return "squad" if suffix == ".json" and _holds_squad(path, source.encoding) else _FORMATS[suffix]


def _holds_squad(path: Path, encoding: str) -> bool:
    if not path.is_file():
        return False
    with open_binary(path) as (_, stream):
        beginning = stream.read(HEAD)
    try:
        return is_squad(beginning.decode(encoding, "ignore").removeprefix("\ufeff"))
    except LookupError:  # no such encoding, which is said when the file is opened
        return False


def plain_suffix(path: Path) -> str:
    """Returns the suffix in lower case, without that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return (Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix).lower()


def open_rows(
    path: Path, kind: str, source: SourceConfig, key: str, stack: ExitStack, only: str | None = None
) -> RowReader:
    """Opens a file of rows; the stack closes it.

    Args:
      kind: its format, other than "text".
      only: the one column that will be used; others of a parquet file are not read.
    Raises:
      UserError: the file is empty, or its beginning cannot be read.
    """
    if source.columns and kind not in _DELIMITED:
        raise UserError(
            f"{setting(key, 'columns')}: only for csv, tsv and conll files, and {path} is {kind}; use {key}.rename"
        )
    if kind == "parquet":
        return _open_parquet(path, stack, only)
    file = stack.enter_context(open_text(path, source.encoding, key))
    lines = iter(file.text)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path}: the file is empty; {key} needs at least one row")
    lines = chain([first], lines)
    if source.separator is not None and kind not in _DELIMITED:
        raise UserError(
            f"{setting(key, 'separator')}: only for csv, tsv and conll files, and {path} is {kind}; leave it out"
        )
    if kind == "conll":
        names = source.columns or ("tokens", "tags")
        return RowReader(str(path), read_conll(lines, names, source.separator), names, fraction=file.fraction)
    if kind == "squad":
        return RowReader(str(path), read_squad("".join(lines), str(path)))
    if kind == "jsonl":
        return RowReader(str(path), read_json(lines, str(path)), fraction=file.fraction)
    quoting = source.quoting if source.quoting != "auto" else kind == "csv"
    columns, records = read_delimited(
        lines,
        name=str(path),
        key=key,
        delimiter=source.separator or ("," if kind == "csv" else "\t"),
        quoting=quoting,
        columns=source.columns,
    )
    hint = (
        ""
        if source.columns
        else f"the first line was read as the header: if it is a row, set {setting(key, 'columns')}"
    )
    return RowReader(str(path), records, columns, hint, file.fraction)


def _open_parquet(path: Path, stack: ExitStack, only: str | None) -> RowReader:
    content: Any = path
    if path.suffix in _COMPRESSED:  # parquet is read from its end
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
    records = _ParquetRecords(file, path, None if only is None or only not in columns else [only])
    return RowReader(str(path), iter(records), columns, fraction=records.fraction)


class _ParquetRecords:
    """The rows of a parquet file, a batch in memory at a time."""

    def __init__(self, file: pyarrow.parquet.ParquetFile, path: Path, columns: list[str] | None) -> None:
        self._file, self._path, self._columns, self._number = file, path, columns, 0

    def fraction(self) -> float:
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
