"""`Documents`: the texts of a corpus for pretraining, read one after another in bounded memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.data.config import SourceConfig
from jaxlm.data.corpus import plain_text
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.plain_text import Part, plain_parts, skip_undecoded
from jaxlm.data.corpus.text_digests import digest_texts
from jaxlm.data.sources import stdlib_docstrings, tfds
from jaxlm.data.sources.files import RowReader, file_format, find_files
from jaxlm.data.sources.installed_docstrings import InstalledDocstrings
from jaxlm.data.sources.sources import bad_row_error, check_keys, open_source
from jaxlm.data.sources.table import place
from jaxlm.data.sources.text_files import BadRow, open_text
from jaxlm.errors import UserError, did_you_mean


class Place(NamedTuple):
    """A place in a source: a file, the rows or pieces of it that have been read, and the documents read in all."""

    file: int = 0
    item: int = 0
    documents: int = 0


class Piece(NamedTuple):
    """A document, or a part of a long one.

    Attributes:
      text: as it stands in the source; of a bad row, empty.
      ends: whether it is the last of its document.
      after: the place behind it.
      problem: what is wrong with a row that is skipped, which is no document.
    """

    text: str
    ends: bool
    after: Place
    problem: str | None = None


class Documents:
    """The documents of one source; they can be read any number of times, from any place that a reading has passed.

    Args:
      source: anything but a mixture.
      key: config key of the source for messages, for instance "data.train".
      split: TFDS or built-in split, unless `source.split` names one.
      text_column: the column that holds the text, after `source.rename`; plain text has none.
      on_bad_row: "stop", or "skip": bad rows are passed on as pieces with a `problem`.
      column_key: config key or option that names `text_column`, for messages.
    Attributes:
      name: what messages call the source.
      files: the files that are read, in order; of TFDS and built-in sources, none.
    Raises:
      UserError: a file that is not there, a format that the name does not tell, keys that do not go together.
    """

    def __init__(
        self,
        source: SourceConfig,
        *,
        key: str,
        split: str,
        text_column: str = "text",
        on_bad_row: str = "stop",
        column_key: str = "task.text",
    ) -> None:
        if source.mixture is not None:
            raise UserError(f"{key}: a mixture has no documents of its own; read its sources one by one")
        if isinstance(source.path, dict):
            raise UserError(f"{key}.path: a file to a column is for fine-tuning; name the files as a list")
        self._source, self._key, self._on_bad_row, self._column_key = source, key, on_bad_row, column_key
        self._split = source.split or split
        self._column = next((old for old, new in source.rename.items() if new == text_column), text_column)
        self._patterns = [source.path] if isinstance(source.path, str) else list(source.path or ())
        self.files = find_files(self._patterns, f"{key}.path") if self._patterns else ()
        self._formats = [file_format(path, source, key, text=True) for path in self.files]
        check_keys(source, key, self._formats)
        self._sizes = [path.stat().st_size for path in self.files]
        self._reading: tuple[int, Callable[[], float]] = (0, lambda: 0.0)
        self.name = f"{key} ({self._describe()})"

    def read(self, start: Place | None = None) -> Iterator[Piece]:
        """Yields the documents from a place on.

        Raises:
          UserError: whatever cannot be read, with its file and row.
        """
        start = start or Place()
        documents, limit = start.documents, self._source.limit
        for number in range(start.file, max(1, len(self.files))):
            num_skipped = start.item if number == start.file else 0
            for item, (text, ends, problem) in enumerate(self._parts(number), start=1):
                if limit is not None and documents >= limit:
                    return
                if item <= num_skipped:
                    continue
                documents += ends
                yield Piece(text, ends, Place(number, item, documents), problem)

    def fraction(self) -> float:
        """Returns the share that the latest reading has read, from 0 to 1, by bytes where the source is files.

        Only the thread that reads may call it, since it asks the open file.
        """
        number, of_this = self._reading
        if not self.files:
            return of_this()
        return (sum(self._sizes[:number]) + self._sizes[number] * of_this()) / max(1, sum(self._sizes))

    def identity(self, contents: Contents) -> dict[str, Any]:
        """Returns everything that decides the documents: the settings, and a digest of the content."""
        source = self._source
        settings = source.model_dump(include={"documents", "columns", "quoting", "encoding", "limit"})
        settings |= {
            "column": self._column,
            "formats": self._formats,
            "on_bad_row": self._on_bad_row,
            "piece": plain_text.PIECE,
        }
        if source.builtin == "installed_docstrings":
            content = InstalledDocstrings(self._split, source.limit).content(contents)
        elif source.builtin is not None:
            content = digest_texts(row["text"] for row in stdlib_docstrings.load_docstrings(self._split).rows)
        elif source.rows is not None:
            content = digest_texts(json.dumps(row, sort_keys=True, default=str) for row in source.rows)
        elif source.tfds is not None:
            folder = tfds.data_folder(source.tfds, source.data_dir, self._key)
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            content = [[str(path.relative_to(folder)), contents.digest(path)] for path in files]
        else:
            content = [contents.digest(path) for path in self.files]
        return settings | {"split": self._split if source.tfds or source.builtin else None, "content": content}

    def _describe(self) -> str:
        source = self._source
        if source.builtin is not None:
            return f"{source.builtin}:{self._split}"
        if source.tfds is not None:
            return f"tfds {source.tfds}:{self._split}"
        if source.rows is not None:
            return f"{len(source.rows)} rows"
        patterns = self._patterns
        files = "" if patterns == [str(path) for path in self.files] else f", {len(self.files)} files"
        return ", ".join(patterns[:3]) + (", ..." if len(patterns) > 3 else "") + files

    def _parts(self, number: int) -> Iterator[Part]:
        """Yields the parts of one file, or of a source that is not files."""
        if self._formats and self._formats[number] == "text":
            yield from self._read_text(self.files[number], number)
            return
        file = self.files[number] if self.files else None
        with ExitStack() as stack:
            reader = open_source(
                self._source,
                key=self._key,
                split=self._split,
                stack=stack,
                file=file,
                column=self._column,
                lenient=self._on_bad_row == "skip",
            )
            yield from self._texts(reader, number)

    def _read_text(self, path: Path, number: int) -> Iterator[Part]:
        by_line = self._source.documents == "line"
        lenient = by_line and self._on_bad_row == "skip"
        with open_text(path, self._source.encoding, self._key, lenient=lenient) as file:
            self._reading = number, file.fraction
            parts = plain_parts(file.text, self._source.documents)
            yield from skip_undecoded(parts, path) if lenient else parts

    def _texts(self, reader: RowReader, number: int) -> Iterator[Part]:
        """Yields the text column of each row."""
        self._reading = number, reader.fraction
        columns = reader.columns
        if columns is not None:
            self._require(reader.name, columns, reader.hint)
        for item, (line, row) in enumerate(reader.records, start=1):
            if not isinstance(row, BadRow):
                if columns is None:
                    self._require(reader.name, columns := tuple(row), "")
                text = row.get(self._column, ...)
                if text is None:  # as parquet and TFDS mark a text that is not there
                    text = ""
                if isinstance(text, list) and text and all(isinstance(part, str) for part in text):
                    text = " ".join(text)  # sentences
                if isinstance(text, str):
                    yield text, True, None
                    continue
                found = "no such column" if text is ... else type(text).__name__
                row = BadRow(f"expected text in column {self._column!r}, found {found}")
            problem = f"{place(reader.name, item, line)}: {row.problem}"
            if self._on_bad_row != "skip":
                raise bad_row_error(problem)
            yield "", False, problem

    def _require(self, name: str, columns: tuple[str, ...], hint: str) -> None:
        if self._column not in columns:
            message = f"{name}: no column {self._column!r}, which {self._column_key} asks for; its columns are: "
            message += ", ".join(map(repr, columns)) + did_you_mean(self._column, columns)
            raise UserError(message + (f"; {hint}" if hint else ""))
