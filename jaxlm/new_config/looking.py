"""Looks at a file of rows: its encoding, the mark between its fields, whether it has a header; and reads it."""

from __future__ import annotations

import codecs
import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.files import file_format, find_files, named_format, tells_format
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.table import Table
from jaxlm.data.sources.text_files import open_binary
from jaxlm.errors import UserError
from jaxlm.new_config.columns import NAMES, number

KEY = "--train"
_BEGINNING = 1 << 20
"""Bytes that are looked at."""
_LINES = 200
_LONGEST_NAME = 60
"""Characters of the name of a column."""
MOST_ROWS = 20_000
"""Rows that are read."""
_TAG = re.compile(r"O|[BIESMLU]-\S+")
_MARKS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


@dataclass(frozen=True)
class Looked:
    """A file and how it is read.

    Attributes:
      path: as `data.train.path` names it: a file or pattern, several, or one to a column.
      settings: keys of `data.train` beside `path`.
      table: its first rows.
      whole: the table holds all rows.
      notes: what was found, and why it is read so.
    """

    path: str | list[str] | dict[str, str | list[str]]
    settings: dict[str, Any]
    table: Table
    whole: bool
    notes: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        """The files and patterns."""
        paths = list(self.path.values()) if isinstance(self.path, dict) else [self.path]
        return [path for one in paths for path in ([one] if isinstance(one, str) else one)]

    @property
    def shown(self) -> str:
        """The files in words."""
        more = f" and {len(self.files) - 2} more" if len(self.files) > 2 else ""
        return " and ".join(self.files[:2]) + more


def look(paths: Sequence[str]) -> Looked:
    """Looks at a file of rows, or at the first of several, or of those that a pattern matches.

    Raises:
      UserError: it cannot be found or read as rows.
    """
    path = paths[0] if len(paths) == 1 else list(paths)
    first, *others = find_files(path, KEY)
    settings: dict[str, Any] = {}
    notes: list[str] = []
    if others:
        notes.append(f"{len(others) + 1} files match; the settings are those of {first}")
    encoding = file_encoding(first)
    if encoding != "utf-8":
        settings["encoding"] = encoding
        notes.append(
            f"encoding {encoding}: the file is not UTF-8, and reads as this; look whether its letters are right"
        )
    lines = _first_lines(first, encoding)
    kind = _kind(first, lines, settings)
    if kind in ("csv", "tsv"):
        notes += _delimited(lines, kind, settings)
        if "format" in settings and "separator" not in settings:
            _refuse_prose(first, lines, kind)
    if kind == "conll":
        notes += _conll(lines, settings)
    source = SourceConfig.model_validate({"path": path, **settings, "limit": MOST_ROWS})
    try:
        table = load(source, key=KEY, split="train", on_bad_row="skip")
    except UserError as error:
        if kind not in ("csv", "tsv") or "double quote" not in str(error):
            raise
        settings["quoting"] = False
        notes.append("quoting: false: a double quote opens and does not close, so quotes are ordinary characters")
        source = SourceConfig.model_validate({"path": path, **settings, "limit": MOST_ROWS})
        table = load(source, key=KEY, split="train", on_bad_row="skip")
    if table.skipped:
        notes.append(f"{table.skipped} rows cannot be read, so data.on_bad_row is skip; `jaxlm check` says more")
    return Looked(path, settings, table, len(table) < MOST_ROWS, tuple(notes))


def file_encoding(file: Path) -> str:
    """Returns the encoding that the beginning of a file looks like."""
    if named_format(file) == "parquet":
        return "utf-8"
    with open_binary(file) as (_, stream):
        content = stream.read(_BEGINNING)
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    for name in ("utf-8", "gb18030", "cp1252"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(content, final=len(content) < _BEGINNING)
        except UnicodeDecodeError:
            continue
        if name != "gb18030" or _in_pairs(content) and sum("\u4e00" <= c <= "\u9fff" for c in text):
            return name
    return "latin-1"


def _in_pairs(content: bytes) -> bool:
    """Whether bytes outside ASCII stand beside one another, as those of Chinese do, and those of accents do not."""
    runs = re.findall(rb"[\x80-\xff]+", content)
    return sum(len(run) for run in runs if len(run) > 1) > 0.8 * sum(map(len, runs))


def _first_lines(file: Path, encoding: str) -> list[str]:
    if named_format(file) == "parquet":
        return []
    with open_binary(file) as (_, stream):
        content = stream.read(_BEGINNING)
    text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding, "ignore")
    lines = text.split("\n")
    whole = lines if len(content) < _BEGINNING else lines[:-1]
    return [line.removesuffix("\r").replace("\r", " ") for line in whole if line.strip()][:_LINES]


def _kind(file: Path, lines: Sequence[str], settings: dict[str, Any]) -> str:
    """The format, by the name, else by the content, which is then set."""
    if tells_format(file):
        return file_format(file, SourceConfig(path=str(file)), KEY)
    if not lines:
        raise UserError(f"{KEY}: {file} is empty; expected rows")
    tags = [line.split()[-1] for line in lines if not line.startswith("-DOCSTART-") and len(line.split()) > 1]
    if 0.9 * len(lines) <= sum(_TAG.fullmatch(tag) is not None for tag in tags):
        settings["format"] = "conll"
        return "conll"
    settings["format"] = "jsonl" if lines[0].lstrip()[:1] in ("{", "[") else "csv"
    if "\t" in lines[0] and settings["format"] == "csv":
        settings["format"] = "tsv"
    return settings["format"]


def _refuse_prose(file: Path, lines: Sequence[str], kind: str) -> None:
    """Raises UserError for a file of which no mark makes rows of several fields."""
    mark, quotes = (",", csv.QUOTE_MINIMAL) if kind == "csv" else ("\t", csv.QUOTE_NONE)
    counts = Counter(len(row) for row in csv.reader(lines, delimiter=mark, quoting=quotes) if row)
    fields, rows = max(counts.items(), key=lambda item: item[1])
    if fields == 1 or 2 * rows <= counts.total():
        raise UserError(
            f"{KEY}: {file} looks like plain text, and not like rows with columns. Plain text is for pretraining "
            "(`jaxlm init --template pretrain/bert_from_text`); texts in a file each become rows as "
            "docs/guides/data.md shows (A file to a text)"
        )


def _delimited(lines: Sequence[str], kind: str, settings: dict[str, Any]) -> list[str]:
    """Settles separator and header of a csv or tsv file; returns what to say."""
    notes: list[str] = []
    usual = "," if kind == "csv" else "\t"
    mark = _separator(lines, usual)
    if mark != usual:
        settings["separator"] = mark
        notes.append(f"separator {mark!r}: {_MARKS[mark]} stand between the fields")
    quotes = csv.QUOTE_MINIMAL if kind == "csv" else csv.QUOTE_NONE
    rows = [row for row in csv.reader(lines, delimiter=mark, quoting=quotes) if row]
    if not has_header(rows):
        settings["columns"] = name_columns(rows)
        notes.append(
            f"columns {', '.join(settings['columns'])}: the first line looks like a row, and not like a header; leave "
            "`columns` out if it is one"
        )
    return notes


def _separator(lines: Sequence[str], usual: str) -> str:
    """The mark by which most lines have the same number of fields, above one."""

    def agreement(mark: str) -> tuple[float, bool, int]:
        quotes = csv.QUOTE_NONE if usual == "\t" else csv.QUOTE_MINIMAL
        counts = Counter(len(row) for row in csv.reader(lines, delimiter=mark, quoting=quotes) if row)
        fields, rows = max(counts.items(), key=lambda item: item[1], default=(1, 0))
        return (rows / max(1, counts.total()) if fields > 1 else 0.0), mark == usual, fields

    best = max(_MARKS, key=agreement)
    return best if agreement(best)[0] > 0.5 else usual


def has_header(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the first row names the columns of the others."""
    first, *others = rows or [[]]
    names = [cell.strip() for cell in first]
    if "" in names[1:] or len(set(names)) < len(names) or any(number(name) is not None for name in names):
        return False
    columns = [[row[place].strip() for row in others if len(row) > place] for place in range(len(names))]
    if any(len(name) > _LONGEST_NAME for name in names) or any(
        name in cells and 2 * len(set(cells)) < len(cells) for name, cells in zip(names, columns, strict=True)
    ):
        return False
    if any(name.lower() in NAMES for name in names) or not others:
        return True
    if any(cells and all(number(cell) is not None for cell in cells) for cells in columns):
        return True
    return all(len(name.split()) <= 3 for name in names)


def name_columns(rows: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """Names for columns that have none: `label` where values repeat most, `text` where they are longest; of further
    columns, `text2` and so on for texts, else `column` and their number."""
    width = max(Counter(map(len, rows)).items(), key=lambda item: item[1])[0]
    columns = [[row[place].strip() for row in rows if len(row) == width] for place in range(width)]
    if width == 1:
        return ("text",)
    lengths = [sum(map(len, cells)) / max(1, len(cells)) for cells in columns]

    def unlike_label(place: int) -> tuple[bool, int, float]:
        kinds = set(columns[place])
        return len(kinds) < 2 or "" in kinds, len(kinds), lengths[place]

    label = min(range(width), key=unlike_label)
    texts = [p for p in range(width) if p != label and (lengths[p] >= 12 or lengths[p] == max(lengths))]
    if not texts:
        texts = [max((p for p in range(width) if p != label), key=lambda p: lengths[p])]
    names = {place: f"text{i}" if len(texts) > 1 else "text" for i, place in enumerate(texts, start=1)}
    return tuple("label" if p == label else names.get(p, f"column{p + 1}") for p in range(width))


def _conll(lines: Sequence[str], settings: dict[str, Any]) -> list[str]:
    widths = Counter(len(line.split()) for line in lines if not line.startswith(("#", "-DOCSTART-")))
    width = max(widths.items(), key=lambda item: item[1], default=(2, 0))[0]
    if width == 2:
        return []
    settings["columns"] = ("tokens", *(f"column{i}" for i in range(2, width)), "tags")
    return [f"{width} columns: the words are taken to be the first, the tags the last"]
