"""Answered rows as they are written: jsonl or csv; a file whole or not at all, a pipe or device line by line."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, BinaryIO

from jaxlm.console import printable
from jaxlm.errors import Interrupted, UserError
from jaxlm.files import atomic_write, explain_write_errors
from jaxlm.local_paths import check_local

log = logging.getLogger("jaxlm")

OURS = ("prediction", "error")
"""What an answered row has beside its own columns."""
HEADER_ROWS = 4096
"""Rows of a table that are read before its header is written."""
_SHEETS = (".xlsx", ".xls", ".ods")
_DESCRIPTOR = re.compile(r"/dev/(?P<name>stdout|stderr)|/(?:dev|proc/self)/fd/(?P<number>\d+)")


def answered(row: Mapping[str, Any], **ours: Any) -> dict[str, Any]:
    """Returns a row with `prediction` or `error`; a column of its own of that name goes by `input_prediction`."""
    return {**{kept_name(name, row): value for name, value in row.items()}, **ours}


def kept_name(name: str, row: Iterable[str]) -> str:
    """What a row's column is called beside the answer."""
    if name not in OURS:
        return name
    new = f"input_{name}"
    while new in row:
        new = f"input_{new}"
    return new


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a line of JSON for each row."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, default=str) + "\n"


def to_csv(rows: Iterable[Mapping[str, Any]], delimiter: str = ",") -> Iterator[str]:
    """Yields the lines of a table: the columns of the first rows, those of predictions as `prediction.label` and
    `prediction.scores.LABEL`, and `error`; what is no string or number is written as JSON.

    Columns that none of the first `HEADER_ROWS` rows has are left out, and named in the log.
    """
    line = io.StringIO()
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\n")

    def written(cells: Sequence[Any]) -> str:
        line.seek(0)
        line.truncate()
        writer.writerow(cells)
        return line.getvalue()

    rows = map(_flat, rows)
    first = list(islice(rows, HEADER_ROWS))
    found = dict.fromkeys(chain.from_iterable(first))
    columns = sorted((name for name in found if name != "error"), key=lambda name: name.startswith("prediction."))
    columns.append("error")
    known = set(columns)
    yield written(columns)
    for row in chain(first, rows):
        for name in row.keys() - known:
            log.warning("--output: the column %r, which none of the first %d rows has, is left out; jsonl holds it",
                        name, HEADER_ROWS)  # fmt: skip
            known.add(name)
        yield written([_cell(row.get(name)) for name in columns])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in row.items() if name != "prediction"}
    return flat | dict(_leaves("prediction", row.get("prediction") or {}))


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What a mapping holds, those in it too, each under its path of names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, value


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def check_output(output: str, given: str) -> None:
    """Refuses a file of answers that would not be what its name says, or would replace the rows.

    Args:
      given: the file of rows, or "-".
    Raises:
      UserError: a spreadsheet's name, or the file of rows.
    """
    if Path(output).suffix.lower() in _SHEETS:
        raise UserError(f"--output {output}: expected a name that ends in .jsonl, .csv or .tsv")
    if "-" not in (output, given) and Path(output).is_file() and Path(output).samefile(given):
        raise UserError(f"--output: {output} is the input, whose rows the answers would replace; name another file")


def write_output(output: str, lines: Iterable[str]) -> None:
    """Writes lines to standard output ("-"), a file, a pipe or a device.

    A file appears whole or not at all, also after SIGTERM; of a symbolic link, the file that it points to.

    Raises:
      RunFailure: it cannot be written.
      Interrupted: SIGTERM came.
    """
    if output == "-":
        safe = printable if sys.stdout.isatty() else str
        for line in lines:
            sys.stdout.write(safe(line))
        sys.stdout.flush()
        return
    path = _checked(output)
    with explain_write_errors(path), _sigterm_raises(path):
        descriptor = _DESCRIPTOR.fullmatch(output)
        if descriptor or path.exists() and not path.is_file():
            with _stream(path, descriptor) as stream:
                for line in lines:
                    stream.write(line)
                    stream.flush()
            return
        with _whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)


def write_binary(output: str, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file of arrays, whole or not at all; errors as of `write_output`."""
    path = _checked(output)
    with explain_write_errors(path), _sigterm_raises(path), _whole(path) as temporary, temporary.open("wb") as file:
        write(file)


def _checked(output: str) -> Path:
    check_local(output, "--output")
    path = Path(output)
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file in it")
    return path


@contextmanager
def _whole(path: Path) -> Generator[Path, None, None]:
    """A temporary file that takes the place of a file, of a symbolic link that of the file that it points to."""
    target = path.resolve() if path.is_symlink() else path
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, shared=True) as temporary:
        yield temporary


def _stream(path: Path, descriptor: re.Match[str] | None) -> IO[str]:
    """An open pipe or device; of a name of a descriptor, that itself, which goes on where its file was left."""
    if descriptor is None:
        return path.open("w", encoding="utf-8")
    number = descriptor["number"] or {"stdout": 1, "stderr": 2}[descriptor["name"]]
    return os.fdopen(os.dup(int(number)), "w", encoding="utf-8")


@contextmanager
def _sigterm_raises(path: Path) -> Generator[None, None, None]:
    """SIGTERM ends the block by an exception, so that it leaves nothing behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_number: int, _frame: object) -> None:
        raise Interrupted(f"SIGTERM: {path} was not written")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
