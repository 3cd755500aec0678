"""Rows to be answered: a file of any format that training reads, or jsonl or lines of text on standard input."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.files import check_file, file_format, named_format, open_rows, plain_suffix, tells_format
from jaxlm.data.sources.parallel_rows import read_parallel, read_text_stream
from jaxlm.data.sources.sources import read_jsonl_stream, rename_records
from jaxlm.data.sources.text_files import Record, encoding_like
from jaxlm.errors import UserError
from jaxlm.parallel import processes
from jaxlm.tasks import TASKS

_KEPT = {"rename", "quoting", "encoding", "separator"}
"""How the run's own files are read, so that a file of the same kind is read likewise."""


class InputRows(NamedTuple):
    """An open source of rows: its name in messages, the rows, their columns where a header or schema tells, and of a
    csv what stands between the fields."""

    name: str
    records: Iterator[Record]
    columns: tuple[str, ...] | None = None
    separator: str | None = None


@contextmanager
def open_input(path: str, config: Config, given: Mapping[str, Any] | None = None) -> Generator[InputRows, None, None]:
    """Opens the rows of a file, or for "-" those of standard input. A line of plain text is a row of the one column
    that the task reads.

    Args:
      config: of the run; its test (else validation, else training) file tells encoding, quotes and names of columns.
      given: settings of `SourceConfig` for this file: columns, separator, quoting, encoding, format; None does not
        count.
    Raises:
      UserError: no such file, or one whose beginning cannot be read; another format than jsonl and text on standard
        input.
    """
    if path == "-":
        yield _standard_input(config, (given or {}).get("format") or "jsonl")
        return
    check_file(Path(path), "--input")
    if Path(path).stat().st_size == 0:
        yield InputRows(path, iter(()))
        return
    if _is_plain_text(path, config, given or {}):
        column, encoding = _only_column(config), str((given or {}).get("encoding") or "utf-8")
        name, records = read_parallel({column: Path(path)}, encoding, "--input", lenient=True)
        yield InputRows(name, records, (column,))
        return
    source, kind = _source(path, config, {name: value for name, value in (given or {}).items() if value is not None})
    with ExitStack() as stack:
        reader = open_rows(Path(path), kind, source, "--input", stack, lenient=True)
        names = None if reader.columns is None else tuple(source.rename.get(name, name) for name in reader.columns)
        stack.enter_context(processes.collective_section())
        mark = source.separator if kind == "csv" else None
        yield InputRows(reader.name, rename_records(reader.records, source.rename), names, mark)


def _standard_input(config: Config, kind: str) -> InputRows:
    if kind == "text":
        column = _only_column(config)
        return InputRows("stdin", read_text_stream(sys.stdin.buffer, column), (column,))
    if kind != "jsonl":
        raise UserError(f"--format {kind}: standard input holds jsonl or text; expected a file")
    return InputRows("stdin", read_jsonl_stream(sys.stdin.buffer, "stdin"))


def _own_source(config: Config) -> SourceConfig | None:
    """The source of the run that says how rows to be answered are read."""
    data = config.data
    return next((s for s in (data.test, data.validation, data.train) if s is not None and s.fraction is None), None)


def _is_plain_text(path: str, config: Config, given: Mapping[str, Any]) -> bool:
    """Whether each line is a text: so it was said, or the run's own files are parallel and the name tells no format."""
    like = _own_source(config)
    if given.get("format") is not None:
        return given["format"] == "text"
    return like is not None and isinstance(like.path, dict) and not tells_format(Path(path))


def _only_column(config: Config) -> str:
    """The column that the lines of plain text are rows of.

    Raises:
      UserError: the task reads several.
    """
    columns = TASKS[config.task.kind].input_columns(config.task, ())
    if len(columns) != 1:
        raise UserError(
            f"--input: a line of plain text is one text, and the run reads the columns {', '.join(columns)}; expected "
            "jsonl, csv, tsv or parquet"
        )
    return columns[0]


def _source(path: str, config: Config, given: Mapping[str, Any]) -> tuple[SourceConfig, str]:
    """Returns how the file is read, and its format: as it was given, else as its name says, else as the run's own file.

    Raises:
      UserError: nothing tells the format.
    """
    like = _own_source(config)
    if like is None or like.first_path is None:
        source = SourceConfig(path=path, **given)
        return source, file_format(Path(path), source, "--input")
    kept = like.model_dump(include=_KEPT)
    if "encoding" not in given:
        kept["encoding"] = encoding_like(Path(path), like.encoding)
    settings = {**kept, **given}
    own, named = _format(like), named_format(Path(path))
    if named is None and "format" not in given and plain_suffix(Path(path)) == plain_suffix(Path(like.first_path)):
        settings["format"] = like.format
    if "columns" not in given and own == "conll" == settings.get("format", named):
        settings["columns"] = like.columns
    source = SourceConfig(path=path, **settings)
    kind = file_format(Path(path), source, "--input")
    if "separator" not in given and kind != own and not {kind, own} <= {"csv", "tsv"}:
        source = source.model_copy(update={"separator": None})
    return source, kind


def _format(source: SourceConfig) -> str | None:
    named = named_format(Path(str(source.first_path))) or ("tsv" if source.columns else None)
    return named if source.format == "auto" else source.format
