"""Rows of questions as examples: their windows, and the tokens of their answers."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.texts import TextCells
from jaxlm.data.examples.token_store import Pieces
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks.answer_cells import IMPOSSIBLE, impossible, place_answer, read_answers, unplaced
from jaxlm.tasks.answer_windows import Window, answer_tokens, make_windows
from jaxlm.tasks.records import Context

log = logging.getLogger("jaxlm")

_SAID = {
    "truncated": "contexts are longer than data.max_length and read in windows",
    "repaired": "answers without an answer_start, or not standing there, were found by their text",
    "misplaced": "answers are not in their context; another answer of the question is",
    "unreachable": "answers are in no window as a whole; a larger data.stride or data.max_length holds more",
}


class QuestionColumns(NamedTuple):
    """Names of columns."""

    question: str
    context: str
    answers: str
    id: str


class _Gold(NamedTuple):
    """The right answers, and the characters of the first that is in the context; None: there is no answer."""

    texts: tuple[str, ...]
    place: tuple[int, int] | None


class QuestionRows:
    """Makes examples of a table's rows.

    Args:
      no_answer: whether a question may have no answer.
    """

    def __init__(self, table: Table, columns: QuestionColumns, context: Context, *, no_answer: bool) -> None:
        self._table, self._columns, self._context, self._no_answer = table, columns, context, no_answer
        self._ids: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    def examples(self, *, labelled: bool, key: str) -> Examples:
        """As `Task.examples`; the label of a row is the tuple of its right answers."""
        table, columns = self._table, self._columns
        table.require(columns.question, columns.context, *((columns.answers,) if labelled else ()), key=key)
        cells = TextCells(table, (columns.question, columns.context), allow_empty=not labelled)
        labels: list[tuple[str, ...] | None] = [None] * len(table.rows)
        made: list[Example] = []
        read: dict[int, tuple[str, str, _Gold | None]] = {}
        bad = BadRows(table, self._context.data, labelled=labelled, key=key)
        for i in range(len(table.rows)):
            try:
                question, text = cells.read(i)
                read[i] = question.strip(), text, self._gold(i, text) if labelled else None
            except UserError as error:
                bad.add(i, error)
        encode = self._encoder([text for row in read.values() for text in row[:2]])
        for i, (question, text, gold) in read.items():
            try:
                made += self._windows(i, encode(question), encode(text), gold)
                labels[i] = None if gold is None else gold.texts
            except UserError as error:
                bad.add(i, error)
        bad.say()
        for name, words in _SAID.items():
            if self._counts[name]:
                log.info("%s: %d %s", table.name, self._counts[name], words)
        counts = {"windows": len(made), **{name: self._counts[name] for name in _SAID}, "skipped": len(bad.errors)}
        return Examples(table, made, labels, counts, bad.errors)

    def _encoder(self, texts: list[str]) -> Callable[[str], Pieces]:
        """Returns `Tokenizer.encode_with_offsets` of these texts; questions share contexts."""
        tokenizer, store = self._context.tokenizer, self._context.tokens
        if store is None:
            return lru_cache(maxsize=64)(tokenizer.encode_with_offsets)
        distinct = list(dict.fromkeys(texts))
        kept = store.read(tokenizer, distinct, "offsets", lambda: map(tokenizer.encode_with_offsets, distinct))
        return dict(zip(distinct, kept, strict=True)).__getitem__

    def _windows(self, i: int, question: Pieces, context: Pieces, gold: _Gold | None) -> list[Example]:
        tokenizer, data = self._context.tokenizer, self._context.data
        span = None
        if gold is not None and gold.place is not None:
            span = answer_tokens(context[1], *gold.place)
            if span is None:
                raise self._error(i, f"{self._columns.answers}: the tokenizer keeps nothing of {gold.texts[0]!r}")
        try:
            windows = make_windows(tokenizer.pair_layout, question[0], context, data.max_length, data.stride)
        except UserError as error:
            raise self._error(i, str(error)) from None
        made = [_example(window, i, span) for window in windows]
        self._counts["truncated"] += len(made) > 1
        self._counts["unreachable"] += span is not None and not any(e.arrays["end_positions"] for e in made)
        return made

    def _gold(self, i: int, text: str) -> _Gold:
        row, columns = self._table.rows[i], self._columns
        if (name := row.get(columns.id)) is not None and self._ids.setdefault(str(name), i) != i:
            other = self._table.where(self._ids[str(name)])
            raise self._error(i, f"{columns.id}={name!r} is also that of {other}; expected ids that differ")
        try:
            return self._read_gold(row, text)
        except ValueError as error:
            raise self._error(i, f"{columns.answers}: {error}") from None

    def _read_gold(self, row: Mapping[str, Any], text: str) -> _Gold:
        """Raises ValueError: no answer where there must be one, or none that is in the context."""
        answers, said = read_answers(row[self._columns.answers]), impossible(row)
        if not answers:
            if not self._no_answer:
                raise ValueError("the question has no answer; expected one, or task.no_answer=true")
            if said is False:
                raise ValueError(f"the question has no answer, and {IMPOSSIBLE} is false")
            return _Gold((), None)
        if said:
            raise ValueError(f"the question has answers, and {IMPOSSIBLE} is true")
        placed = [place_answer(answer, text) for answer in answers]
        found = next((place for place in placed if place is not None), None)
        if found is None:
            raise ValueError(unplaced(answers[0], text))
        self._counts["repaired"] += sum(place is not None and place.repaired for place in placed)
        self._counts["misplaced"] += placed.count(None)
        return _Gold(tuple(answer.text for answer in answers), (found.start, found.end))

    def _error(self, i: int, problem: str) -> UserError:
        return UserError(f"{self._table.where(i)}: {problem}")


def _example(window: Window, row: int, span: tuple[int, int] | None) -> Example:
    """A window with the ends of the answer, or at its first token where it has not the whole answer."""
    start = end = 0
    if span is not None:
        first, last = span[0] - window.begin, span[1] - window.begin
        if first >= 0 and last < len(window.tokens.offsets):
            start, end = window.tokens.first + first, window.tokens.first + last
    arrays = {
        "tokens": window.ids,
        "token_types": window.type_ids,
        "start_positions": np.asarray(start, np.int32),
        "end_positions": np.asarray(end, np.int32),
    }
    return Example(arrays, row, host=window.tokens)
