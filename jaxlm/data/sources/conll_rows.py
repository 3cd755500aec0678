"""Rows of CoNLL files: a token to a line, columns between white space, blank lines between sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from jaxlm.data.sources.text_files import BadRow, Record, setting

DOCUMENT_MARK = "-DOCSTART-"
_SPACES = re.compile(r"[ \t]+")
_COMMENT = re.compile(r"#\s*(\S+ = |newdoc\b|newpar\b)")


def read_conll(
    lines: Iterator[str], columns: Sequence[str], separator: str | None = None, *, key: str = "data.train"
) -> Iterator[Record]:
    """Yields a row for each sentence: each column is the list of its tokens' fields.

    Lines with a tab are cut at tabs, others at runs of blanks. Document marks (-DOCSTART-) end a sentence and are
    passed over, and so are comments: lines that begin with "#" and have another number of fields, or, before a
    sentence, "# name = value", "# newdoc" and "# newpar".

    Args:
      separator: what stands between fields; None: as above.
      key: config key of the source, or the option that names the file, for messages.
    """
    sentence: list[list[str]] = []
    start, problem = 0, ""

    def row() -> Record:
        if problem:
            return start, BadRow(problem)
        return start, {name: [fields[i] for fields in sentence] for i, name in enumerate(columns)}

    for number, line in enumerate(lines, start=1):
        line = line.removesuffix("\n").removesuffix("\r")
        if not line.strip(" \t"):
            if sentence or problem:
                yield row()
            sentence, problem = [], ""
            continue
        fields = _fields(line, separator)
        if fields[0] == DOCUMENT_MARK:
            if sentence or problem:
                yield row()
            sentence, problem = [], ""
            continue
        begins = not sentence and not problem
        if line.startswith("#") and (len(fields) != len(columns) or begins and _COMMENT.match(line)):
            continue
        if begins:
            start = number
        if len(fields) != len(columns):
            problem = problem or (
                f"line {number} has {len(fields)} fields, expected {len(columns)} ({', '.join(columns)}); name "
                f"the file's columns in {setting(key, 'columns')}, or what stands between fields in "
                f"{setting(key, 'separator')}"
            )
        sentence.append(fields)
    if sentence or problem:
        yield row()


def _fields(line: str, separator: str | None) -> list[str]:
    if separator is not None or "\t" in line:
        return [field.strip(" ") for field in line.split(separator or "\t")]
    return _SPACES.split(line.strip(" "))
