"""The answers of a question: read from a cell in any of the usual forms, and placed in their context."""

from __future__ import annotations

import ast
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxlm.tasks.label_cells import is_missing

IMPOSSIBLE = "is_impossible"
"""Column that says whether a question has no answer; rows may do without."""
NEARBY = 50
"""Characters that a wrong offset may be off by where the answer is looked for."""


class GivenAnswer(NamedTuple):
    """An answer as a row has it; `start` None: the row does not say where it stands."""

    text: str
    start: int | None


class PlacedAnswer(NamedTuple):
    """Where an answer stands in its context."""

    start: int
    end: int
    repaired: bool
    """The row says another place, or none."""


def read_answers(cell: Any) -> list[GivenAnswer]:
    """Returns the answers in a cell; of a question without an answer, [].

    A cell holds {"text": [...], "answer_start": [...]}, a list of {"text", "answer_start"}, or texts alone; in csv, one
    of these as JSON or as Python writes it, or one text. Blank texts are no answers.

    Raises:
      ValueError: it holds none of these; the message says what was found.
    """
    if isinstance(cell, str):
        cell = _parsed(cell)
    if cell is None or isinstance(cell, float) and math.isnan(cell):
        raise ValueError("expected the answers, found none (no answer at all is [])")
    if isinstance(cell, Mapping):
        texts, starts = cell.get("text"), cell.get("answer_start")
        texts, starts = ([value] if isinstance(value, str | int) else value for value in (texts, starts))
        if not isinstance(texts, Sequence) or not isinstance(starts, Sequence | None):
            raise ValueError('expected {"text": [...], "answer_start": [...]}')
        if starts is not None and len(starts) != len(texts):
            raise ValueError(f"{len(texts)} texts, but {len(starts)} answer_start")
        cell = [{"text": text, "answer_start": None if starts is None else starts[i]} for i, text in enumerate(texts)]
    if not isinstance(cell, Sequence):
        raise ValueError('expected {"text": [...], "answer_start": [...]} or a list of {"text", "answer_start"}')
    return [answer for answer in map(_answer, cell) if answer.text.strip()]


def _parsed(cell: str) -> Any:
    text = cell.strip()
    if not text:
        return None
    if text[0] not in "[{":
        return [cell]
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise ValueError("begins as a list or an object, and is neither JSON nor Python's way to write one")


def _answer(value: Any) -> GivenAnswer:
    text, start = (value, None) if isinstance(value, str) else (None, None)
    if isinstance(value, Mapping):
        text, start = value.get("text"), value.get("answer_start")
    if not isinstance(text, str):
        raise ValueError(f"expected an answer's text, found {_short(value)}")
    if isinstance(start, str) and start.strip().lstrip("-").isdecimal():
        start = int(start)
    if isinstance(start, float) and start.is_integer():
        start = int(start)
    if start is not None and (isinstance(start, bool) or not isinstance(start, int)):
        raise ValueError(f"answer_start: expected a whole number of characters, found {_short(start)}")
    return GivenAnswer(text, start)


def place_answer(answer: GivenAnswer, context: str) -> PlacedAnswer | None:
    """Returns where an answer stands, without white space around it; None: not to be found.

    It is looked for where the row says. If it is not there, it must occur exactly once within 50 characters of that
    place; if the row names no place (none, or a number below 0), exactly once in the context.
    """
    lead = len(answer.text) - len(answer.text.lstrip())
    text = answer.text.strip()
    start = None if answer.start is None or answer.start < 0 else answer.start + lead
    if start is not None and context.startswith(text, start):
        return PlacedAnswer(start, start + len(text), False)
    low, high = (0, len(context)) if start is None else (max(0, start - NEARBY), start + NEARBY)
    found = context.find(text, low, high + len(text))
    if found < 0 or context.find(text, found + 1, high + len(text)) >= 0:
        return None
    return PlacedAnswer(found, found + len(text), True)


def unplaced(answer: GivenAnswer, context: str) -> str:
    """Says why an answer was not found."""
    times = _occurrences(context, answer.text.strip())
    if not times:
        return f"the answer {_short(answer.text)} does not occur in the context"
    where = "no answer_start is given" if answer.start is None else f"it does not stand at answer_start={answer.start}"
    found = "once, but not near by" if times == 1 else f"{times} times"
    return f"the answer {_short(answer.text)} occurs {found}, and {where}"


def _occurrences(text: str, part: str) -> int:
    """How often a part occurs, overlaps included."""
    count, place = 0, text.find(part)
    while place >= 0:
        count, place = count + 1, text.find(part, place + 1)
    return count


def impossible(row: Mapping[str, Any]) -> bool | None:
    """What a row says of `is_impossible`, in csv, too; None: nothing (no such column, null, NaN, blank)."""
    cell = row.get(IMPOSSIBLE)
    if is_missing(cell):
        return None
    return cell.strip().lower() in ("true", "1", "1.0", "yes") if isinstance(cell, str) else bool(cell)


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:60] + "..."
