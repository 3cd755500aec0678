"""Documents of plain text, in pieces of bounded size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

from jaxlm.data.sources.text_files import undecoded
from jaxlm.errors import UserError

PIECE = 1 << 16
"""Characters of plain text that are read at a time: the pieces of a longer document are tokenized by themselves, and
in parallel."""

Part = tuple[str, bool, str | None]
"""Text, whether its document ends, and what is wrong with a row instead."""


def plain_parts(text: io.TextIOWrapper, documents: str) -> Iterator[Part]:
    """Yields the documents of an open file.

    Args:
      documents: what one is: file, line or blank_line.
    """
    pieces = {"file": _whole, "line": _lines, "blank_line": _paragraphs}[documents]
    return ((piece, ends, None) for piece, ends in pieces(text))


def skip_undecoded(lines: Iterator[Part], path: Path) -> Iterator[Part]:
    """Puts a problem in the place of each line with bytes that could not be decoded.

    Raises:
      UserError: such a line of more than `PIECE` characters, a part of which has been passed on.
    """
    number, begins = 1, True
    for text, ends, _ in lines:
        bad = undecoded(text)
        if bad is None:
            yield text, ends, None
        elif begins and ends:
            yield "", False, f"{path}, line {number}: {bad.problem}"
        else:
            raise UserError(f"{path}, line {number}: {bad.problem} (so long a line cannot be skipped)")
        number, begins = number + ends, ends


def _whole(text: io.TextIOWrapper) -> Iterator[tuple[str, bool]]:
    """Yields one document in pieces, cut at line ends where there are any, else between words."""
    held = ""
    while block := text.read(PIECE):
        held += block
        if len(held) >= PIECE:
            cut = held.rfind("\n") + 1 or max(held.rfind(" "), 0) or len(held)
            yield held[:cut], False
            held = held[cut:]
    yield held, True


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[str, bool]]:
    """Yields each line as a document, without its line end."""
    open_ = False
    while part := text.readline(PIECE):
        open_ = not part.endswith("\n") and len(part) == PIECE
        yield part if open_ else part.removesuffix("\n").removesuffix("\r"), not open_
    if open_:
        yield "", True


def _paragraphs(text: io.TextIOWrapper) -> Iterator[tuple[str, bool]]:
    """Yields what stands between blank lines as a document, without the line end of its last line."""
    lines: list[str] = []
    size, open_, starts = 0, False, True
    while line := text.readline(PIECE):
        blank = starts and line.isspace() and (line.endswith("\n") or len(line) < PIECE)
        starts = line.endswith("\n")
        if blank:
            if lines or open_:
                yield "".join(lines).removesuffix("\n").removesuffix("\r"), True
            lines, size, open_ = [], 0, False
            continue
        lines.append(line)
        size += len(line)
        if size >= PIECE:
            # The last line waits: its line end belongs to the document only if another line follows.
            *ready, last = lines
            if ready:
                yield "".join(ready), False
                lines, size, open_ = [last], len(last), True
    if lines or open_:
        yield "".join(lines).removesuffix("\n").removesuffix("\r"), True
