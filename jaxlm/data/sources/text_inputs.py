"""Texts to train a tokenizer on, streamed from text, jsonl and parquet files, plain, .gz or .zst."""

from __future__ import annotations

import codecs
import glob
import io
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxlm.data.sources.text_files import open_binary
from jaxlm.errors import UserError

_PIECE = 1 << 20  # bytes of a text file's line that are held at a time
_JSONL = (".jsonl", ".ndjson", ".json")
_OTHER_FORMATS = (".arrow", ".bz2", ".csv", ".tar", ".tsv", ".xz", ".zip")


def input_files(patterns: Sequence[str]) -> list[Path]:
    """Files by name or glob pattern, each once, those of a pattern in the order of their names."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        named = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        files = [Path(name) for name in named if Path(name).is_file()]
        if not files:
            what = "a directory" if Path(pattern).is_dir() else "no such file, and no match as a pattern"
            raise UserError(f"--input: {pattern}: {what}; expected files, or a pattern such as 'corpus/*.jsonl.gz'")
        found.update(dict.fromkeys(files))
    for path in found:
        suffix = _plain(path).suffix
        if suffix in _OTHER_FORMATS:
            raise UserError(
                f"--input: {path}: {suffix} is not read here; expected text (one piece to a line), .jsonl or .parquet, "
                "plain, .gz or .zst"
            )
    return list(found)


def read_texts(files: Iterable[Path], column: str = "text") -> Iterator[str]:
    """The texts of files, in order, blank lines left out; of jsonl and parquet those in `column`, nulls left out.

    Holds a row of jsonl, a row group's column of parquet, or 1 MiB of a line of text at a time.

    Raises:
      UserError: a file that is damaged, not UTF-8, or without the column, with its line.
    """
    for path in files:
        suffix = _plain(path).suffix
        if suffix == ".parquet":
            yield from _parquet(path, column)
        elif suffix in _JSONL:
            yield from _jsonl(path, column)
        else:
            for _, line in _lines(path, _PIECE):
                if text := line.removesuffix("\n").removesuffix("\r"):
                    yield text


def _plain(path: Path) -> Path:
    """The name without the suffix of a compression."""
    return path.with_suffix("") if path.suffix in (".gz", ".zst") else path


def _lines(path: Path, most: int = -1) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, one longer than `most` bytes in several parts."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, more = 1, True
    # The buffer is what has lines: pyarrow's zstd streams have none.
    with open_binary(path) as (_, stream), io.BufferedReader(stream) as buffered:
        while more:
            part = buffered.readline(most)
            more = bool(part)
            try:
                line = decoder.decode(part, final=not more)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: byte {error.object[error.start]:#04x} is not UTF-8; convert the file to UTF-8"
                ) from None
            yield number, line
            number += part.endswith(b"\n")


def _jsonl(path: Path, column: str) -> Iterator[str]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); expected one object to a line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected one JSON object to a line; found {type(row).__name__}")
        if column not in row:
            found = ", ".join(row) or "none"
            raise UserError(f"{path}:{number}: no column {column!r}; found {found}; name one with --column")
        text = row[column]
        if text is None:
            continue
        if not isinstance(text, str):
            raise UserError(f"{path}:{number}: column {column!r} holds {type(text).__name__}; expected text")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UserError(
                f"{path}:{number}: a \\ud... escape stands without the other half of its surrogate pair: no valid text"
            ) from None
        yield text


def _parquet(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as plain:
        source: Any = path
        if path.suffix != ".parquet":  # parquet is read from its end
            with open_binary(path) as (_, stream):
                shutil.copyfileobj(stream, plain)
            source = plain
        try:
            with parquet.ParquetFile(source) as file:
                schema = file.schema_arrow
                if column not in schema.names:
                    found = ", ".join(schema.names)
                    raise UserError(f"{path}: no column {column!r}; found {found}; name one with --column")
                kind = schema.field(column).type
                if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                    raise UserError(f"{path}: column {column!r} holds {kind}; expected text")
                for batch in file.iter_batches(1024, columns=[column]):
                    yield from (text for text in batch.column(0).to_pylist() if text)
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a whole parquet file ({error}); copy or download it again") from error
