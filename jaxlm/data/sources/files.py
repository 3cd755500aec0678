"""Finds the files of a source by name or pattern, tells their format by the name, and opens them row by row."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.conll_rows import read_conll
from jaxlm.data.sources.delimited_rows import read_delimited
from jaxlm.data.sources.json_rows import read_json
from jaxlm.data.sources.parquet_rows import open_parquet
from jaxlm.data.sources.squad_rows import HEAD, is_squad, read_squad
from jaxlm.data.sources.text_files import COMPRESSED, BadRow, Record, open_binary, open_text, setting, undecoded
from jaxlm.errors import UserError
from jaxlm.local_paths import check_local, missing

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
_OTHERS: dict[str, str] = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), "a spreadsheet: save it as csv (UTF-8)"),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".bz2", ".xz"), "an archive: unpack it, or compress with gzip"),
    **dict.fromkeys((".pkl", ".pickle", ".arrow", ".feather", ".npy"), "not read: save it as parquet or jsonl"),
}
"""Ends of names of files that are not read, and what to do."""
_DELIMITED = ("csv", "tsv", "conll")
_TEXT = (".txt", ".text", ".md")


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
            there = _described(folder) if folder.is_dir() else f"; there is no folder {folder}"
            at = "" if Path(pattern).is_absolute() else f" (relative paths are taken from {Path.cwd()})"
            raise UserError(f"{key}: no file matches {pattern}{there}{at}")
        found.update(dict.fromkeys(files))
    return tuple(found)


def pair_files(columns: Mapping[str, str | Sequence[str]], key: str) -> tuple[Mapping[str, Path], ...]:
    """Returns the parallel files of several columns: the first ones of all, the second ones, ...

    Args:
      columns: column -> its file, pattern or list of them.
      key: config key for messages.
    Raises:
      UserError: as `find_files`; columns of different numbers of files.
    """
    found = {column: find_files(patterns, f"{key}.{column}") for column, patterns in columns.items()}
    if len({len(files) for files in found.values()}) > 1:
        counts = ", ".join(f"{column} has {len(files)}" for column, files in found.items())
        raise UserError(f"{key}: {counts} files; expected as many for each column, which belong together in order")
    return tuple(dict(zip(found, files, strict=True)) for files in zip(*found.values(), strict=True))


def _described(folder: Path) -> str:
    """What a folder holds, for a message."""
    names = sorted(entry.name for entry in folder.iterdir())
    held = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") if names else "nothing"
    return f"; the folder {folder} holds {held}"


def _first_magic(pattern: str) -> int:
    return next(i for i, part in enumerate(Path(pattern).parts) if glob.has_magic(part))


def check_file(path: Path, key: str) -> None:
    """Raises UserError, with the nearest name in the folder, where there is no such file."""
    check_local(path, key)
    if path.is_file():
        return
    if path.is_dir():
        raise UserError(f"{key}: {path} is a folder; name a file in it")
    raise UserError(f"{key}: no file {path}{missing(path)}")


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
    if suffix in _OTHERS:
        raise UserError(f"{key if key.startswith('--') else f'{key}.path'}: {path} is {_OTHERS[suffix]}")
    if suffix not in _FORMATS:
        formats = "text, jsonl, csv, tsv or parquet" if text else "jsonl, csv, tsv, parquet or conll"
        formats += ", or text (a row to a line)" if key == "--input" else ""
        raise UserError(
            f"{key if key.startswith('--') else f'{key}.path'}: the name {path} does not tell the format; set "
            f"{setting(key, 'format')} to {formats}"
            + (f" (or {setting(key, 'columns')}, if it is tab-separated without a header)" if suffix == ".txt" else "")
        )
    return "squad" if suffix == ".json" and _holds_squad(path, source.encoding) else _FORMATS[suffix]


def tells_format(path: Path) -> bool:
    """Returns whether a name tells the format of its file, or that it is not read."""
    return plain_suffix(path) in {*_FORMATS, *_OTHERS}


def _holds_squad(path: Path, encoding: str) -> bool:
    if not path.is_file():
        return False
    with open_binary(path) as (_, stream):
        beginning = stream.read(HEAD)
    try:
        return is_squad(beginning.decode(encoding, "ignore").removeprefix("\ufeff"))
    except LookupError:  # no such encoding, which is said when the file is opened
        return False


def named_format(path: Path) -> str | None:
    """Returns the format that the name alone tells: "jsonl" of "a.json"; None: it tells none."""
    return _FORMATS.get(plain_suffix(path))


def plain_suffix(path: Path) -> str:
    """Returns the suffix in lower case, without that of a compression: ".jsonl" of "a.jsonl.gz"."""
    return (Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix).lower()


def open_rows(
    path: Path,
    kind: str,
    source: SourceConfig,
    key: str,
    stack: ExitStack,
    only: str | None = None,
    *,
    lenient: bool = False,
) -> RowReader:
    """Opens a file of rows; the stack closes it.

    Args:
      kind: its format, other than "text".
      only: the one column that will be used; others of a parquet file are not read.
      lenient: a row with bytes that are not UTF-8 is a bad row, where the format has rows that stand apart.
    Raises:
      UserError: the file is empty, or its beginning cannot be read.
    """
    if source.columns and kind not in _DELIMITED:
        raise UserError(
            f"{setting(key, 'columns')}: only for csv, tsv and conll files, and {path} is {kind}; use {key}.rename"
        )
    if kind == "parquet":
        columns, rows = open_parquet(path, stack, only)
        return RowReader(str(path), iter(rows), columns, fraction=rows.fraction)
    file = stack.enter_context(open_text(path, source.encoding, key, lenient=lenient and kind != "squad"))
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
        sentences = read_conll(lines, names, source.separator, key=key)
        return RowReader(str(path), _decoded(sentences) if lenient else sentences, names, fraction=file.fraction)
    if kind == "squad":
        return RowReader(str(path), read_squad("".join(lines), str(path)))
    if kind == "jsonl":
        checked = (undecoded(line) or line for line in lines) if lenient else lines
        return RowReader(str(path), read_json(checked, str(path)), fraction=file.fraction)
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
    return RowReader(str(path), _decoded(records) if lenient else records, columns, hint, file.fraction)


def _decoded(records: Iterator[Record]) -> Iterator[Record]:
    """Puts bad rows where cells hold bytes that could not be decoded."""
    for line, row in records:
        if not isinstance(row, BadRow):
            cells = "".join(cell if isinstance(cell, str) else "".join(cell) for cell in row.values())
            row = undecoded(cells) or row
        yield line, row
