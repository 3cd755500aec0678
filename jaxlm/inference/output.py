"""Answered rows as they are written: jsonl or csv; a file whole or not at all, a pipe or device line by line."""

from __future__ import annotations

import csv
import io
import json
import signal
import sys
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jaxlm.errors import Interrupted, UserError
from jaxlm.files import atomic_write, explain_write_errors

OURS = ("prediction", "error")
"""What an answered row has beside its own columns."""


def answered(row: Mapping[str, Any], **ours: Any) -> dict[str, Any]:
    """Returns a row with `prediction` or `error`; a column of its own of that name goes by `input_prediction`."""
    return {**{f"input_{name}" if name in OURS else name: value for name, value in row.items()}, **ours}


def to_jsonl(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a line of JSON for each row."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, default=str) + "\n"


def to_csv(rows: Iterable[Mapping[str, Any]], delimiter: str = ",") -> Iterator[str]:
    """Yields the lines of a table: the columns of the first row, those of its prediction as `prediction.label` and so
    on, and `error`; what is no string or number is written as JSON.

    Raises:
      UserError: a row has a column that the first has not.
    """
    line = io.StringIO()
    writer = csv.writer(line, delimiter=delimiter, lineterminator="\n")

    def written(cells: Sequence[Any]) -> str:
        line.seek(0)
        line.truncate()
        writer.writerow(cells)
        return line.getvalue()

    waiting: list[dict[str, Any]] = []  # rows with an error before the first prediction, which names its columns
    columns: list[str] | None = None
    for row in rows:
        flat = _flat(row)
        if columns is None:
            waiting.append(flat)
            if "error" in flat:
                continue
            columns = [*(name for name in flat), "error"]
            yield written(columns)
        else:
            waiting = [flat]
        for values in waiting:
            unknown = [name for name in values if name not in columns]
            if unknown:
                raise UserError(f"--output: csv has the columns of the first row, and a later row has {unknown[0]!r}; "
                                "write jsonl")  # fmt: skip
            yield written([_cell(values.get(name)) for name in columns])
        waiting = []
    if waiting:
        columns = list(dict.fromkeys(name for values in waiting for name in values))
        yield written(columns)
        for values in waiting:
            yield written([_cell(values.get(name)) for name in columns])


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in row.items() if name != "prediction"}
    return flat | {f"prediction.{name}": value for name, value in dict(row.get("prediction") or {}).items()}


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, ensure_ascii=False)


def write_output(output: str, lines: Iterable[str]) -> None:
    """Writes lines to standard output ("-"), a file, a pipe or a device.

    A file appears whole or not at all, also after SIGTERM; of a symbolic link, the file that it points to.

    Raises:
      RunFailure: it cannot be written.
      Interrupted: SIGTERM came.
    """
    if output == "-":
        for line in lines:
            sys.stdout.write(line)
        sys.stdout.flush()
        return
    path = Path(output)
    if path.is_dir():
        raise UserError(f"--output: {path} is a folder; name a file in it")
    with explain_write_errors(path), _sigterm_raises(path):
        if path.exists() and not path.is_file():
            with path.open("w", encoding="utf-8") as stream:
                for line in lines:
                    stream.write(line)
                    stream.flush()
            return
        target = path.resolve() if path.is_symlink() else path
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target, shared=True) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)


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
