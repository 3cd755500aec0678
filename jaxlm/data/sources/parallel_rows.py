"""Rows of parallel text files: line n of each file is row n, a file to a column."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxlm.data.sources.text_files import BadRow, Record, open_text, undecoded
from jaxlm.errors import UserError


def read_parallel(
    paths: Mapping[str, Path], encoding: str, key: str, *, lenient: bool = False
) -> tuple[str, Iterator[Record]]:
    """Reads the files whole, and pairs their lines.

    Only a line feed ends a line; a carriage return before it belongs to the line's end.

    Args:
      paths: column -> file, plain, .gz or .zst.
      encoding: of all of them.
      key: config key of the source, for errors.
      lenient: a line with bytes that are not UTF-8 makes a bad row.
    Returns:
      What messages call the files, and the rows.
    Raises:
      UserError: files of different numbers of lines; as `open_text`.
    """
    columns: dict[str, list[str]] = {}
    for column, path in paths.items():
        with open_text(path, encoding, f"{key}", lenient=lenient) as file:
            columns[column] = [line.removesuffix("\n").removesuffix("\r") for line in file.text]
    counts = {column: len(lines) for column, lines in columns.items()}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{paths[column]} has {count} lines" for column, count in counts.items())
        option = key if key.startswith("--") else f"{key}.path"
        raise UserError(
            f"{option}: {found}; expected as many in each, since line n of one belongs to line n of another"
        )
    return " + ".join(map(str, paths.values())), enumerate(_rows(columns), start=1)


def read_text_stream(handle: Iterable[bytes], column: str) -> Iterator[Record]:
    """Yields the lines of a stream, such as stdin, as rows of one column; a line that is not UTF-8 is a bad row."""
    for number, line in enumerate(handle, start=1):
        text = line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        text = text.removeprefix("\ufeff") if number == 1 else text
        yield number, undecoded(text) or {column: text}


def _rows(columns: Mapping[str, list[str]]) -> Iterator[dict[str, Any] | BadRow]:
    names = list(columns)
    for cells in zip(*columns.values(), strict=True):
        yield undecoded("".join(cells)) or dict(zip(names, cells, strict=True))
