"""Which task rows are of, by their columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.new_config.columns import LABELS, LANGUAGES, PAIRS, WRITTEN, Column
from jaxlm.new_config.kinds import TASKS

_SEARCHED = (("anchor", "positive"), ("query", "positive"), ("query", "document"), ("query", "passage"))
_CHOICES = (
    ("a", "b", "c", "d"), ("A", "B", "C", "D"),
    *(tuple(f"{name}{i}" for i in range(k)) for name in ("choice", "ending", "option", "answer") for k in (5, 4, 3, 2)),
    ("choice1", "choice2"), ("a", "b"),
)  # fmt: skip
_TAGS = ("tags", "ner_tags", "ner", "labels", "entities")
"""Names of columns of tags, which come before such as `pos_tags`."""
_SEPARATORS = (";", "|", ",")
_ANSWERED = (("instruction", "output"), ("prompt", "completion"), ("instruction", "response"), ("prompt", "response"))
"""Instructions and what follows them."""


@dataclass(frozen=True)
class Guess:
    """The task that rows are of.

    Attributes:
      name: one of `TASKS`.
      section: keys of the section `task`.
      texts: the columns that are read.
      notes: why.
      target: of a task that writes, the column that is written.
      beside: columns that a template reads beside `texts`, and that may be blank.
    """

    name: str
    section: dict[str, Any]
    texts: tuple[str, ...]
    notes: list[str] = field(default_factory=list[str])
    target: str | None = None
    beside: tuple[str, ...] = ()


def guess_parallel(table: Table, wanted: str | None) -> Guess:
    """Returns the task of parallel texts, the first of which is read and the second written: a translation.

    Args:
      wanted: as in `guess_task`.
    Raises:
      UserError: another task is wanted.
    """
    writing = ("translation", "summarization", "text_to_text")
    if wanted not in (None, *writing):
        raise UserError(f"--task {wanted}: parallel files hold texts alone; expected one of {', '.join(writing)}")
    source, target = table.columns
    return _written(wanted or "translation", source, target, [f"{source} is read and {target} written, line by line"])


def guess_task(table: Table, wanted: str | None) -> Guess:
    """Returns the task that the columns of a table are for.

    Args:
      wanted: one of `TASKS`; None: whatever the columns look like.
    Raises:
      UserError: nothing fits, or not what is wanted.
    """
    columns = {
        name: Column(name, [row[name] for row in table.rows if row[name] not in (None, "")]) for name in table.columns
    }
    finders = {
        "question_answering": _answers,
        "tagging": _tags,
        "multiple_choice": _choices,
        "multi-label": _several_labels,
        "regression": _numbers,
        "pairs": _pairs,
        "classification": _classes,
        "embedding": _embeddings,
        "summarization": _summaries,
        "translation": _translations,
        "text_to_text": _writing,
    }
    if wanted is None and any(set(pair) <= set(columns) for pair in _ANSWERED):
        tried = ["text_to_text"]  # whether answers repeat or not
    else:
        tried = [wanted] if wanted else list(finders)
    for name in tried:
        if (found := finders[name](columns, wanted is not None)) is not None:
            return found
    listed = ", ".join(map(repr, table.columns))
    if wanted:
        raise UserError(
            f"--task {wanted}: expected {_NEEDS[wanted]}; the columns of {table.name} are {listed}{_unread(columns)}"
        )
    raise UserError(
        f"{table.name}: its columns ({listed}) do not tell what is to be learned; say it with --task, one of "
        f"{', '.join(TASKS)}{_unread(columns)}"
    )


def _unread(columns: _Columns) -> str:
    """What to do about columns that hold objects, such as `{"subject": ..., "body": ...}` or the turns of a chat."""
    nested = [c.name for c in columns.values() if any(isinstance(v, dict) or _holds_objects(v) for v in c.values[:50])]
    if not nested:
        return ""
    verb = "holds" if len(nested) == 1 else "hold"
    return (
        f". {', '.join(nested)} {verb} objects, whose fields are not read: write each field that is needed as a column "
        "of its own (docs/guides/data.md, fields inside fields)"
    )


def _holds_objects(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(part, dict) for part in value)


_NEEDS = {
    "question_answering": "columns question, context and answers (SQuAD's form), or answer, a part of the context",
    "tagging": "a column of lists of words and one of tags as long, or text and entities",
    "multiple_choice": "a question, its candidates (a list `choices`, or a column each) and a label",
    "multi-label": "a text column and one of several labels, as lists or between separators",
    "regression": "a text column and one of numbers",
    "pairs": "two text columns and a label",
    "classification": "a text column and a column of labels that repeat",
    "embedding": "two text columns, with or without a score",
    "summarization": "a column of texts and one of summaries",
    "translation": "two text columns, one a translation of the other",
    "text_to_text": "two text columns, one to read and one to write",
}

_Columns = dict[str, Column]


def _answers(columns: _Columns, wanted: bool) -> Guess | None:
    if not {"question", "context"} <= set(columns):
        return None
    section = {"kind": "question_answering"}
    if "answers" not in columns:
        if "answer" not in columns or not (wanted or _are_parts(columns["answer"], columns["context"])):
            return None
        section["answers"] = "answer"
    return Guess("question_answering", section, ("question", "context"), ["it has questions, contexts and answers"])


def _are_parts(parts: Column, texts: Column) -> bool:
    """Whether most values of a column stand in the text beside them."""
    pairs = list(zip(parts.values, texts.values, strict=False))
    return 2 * sum(isinstance(a, str) and isinstance(b, str) and a in b for a, b in pairs) > len(pairs)


def _tags(columns: _Columns, wanted: bool) -> Guess | None:
    text = next((c.name for c in columns.values() if c.is_text), None)
    spans = next((c.name for c in columns.values() if c.name == "entities" and c.is_list or _are_spans(c)), None)
    if spans is not None and text is not None:
        section = {"kind": "tagging", "text": text, "entities": spans}
        return Guess("tagging", section, (text,), ["it has texts and entities"])
    lists = [
        c
        for c in columns.values()
        if c.is_list and all(isinstance(v, str | int) for value in c.values[:50] for v in value)
    ]
    by_name = sorted(lists, key=lambda c: _TAGS.index(c.name.lower()) if c.name.lower() in _TAGS else len(_TAGS))
    for tokens in lists:
        for tags in by_name:
            same = all(len(a) == len(b) for a, b in zip(tokens.values, tags.values, strict=False))
            kinds = [len({str(v) for value in c.values for v in value}) for c in (tokens, tags)]
            if tokens is not tags and same and kinds[1] < kinds[0] and any(len(value) > 1 for value in tokens.values):
                section = {"kind": "tagging", "tokens": tokens.name, "tags": tags.name}
                return Guess(
                    "tagging", section, (tokens.name,), [f"{tags.name} has a tag for each word of {tokens.name}"]
                )
    return None


def _are_spans(column: Column) -> bool:
    """Whether a column holds lists of entities: [start, end, label] or {"start", "end", "label"}."""
    found = [part for value in column.values[:200] if isinstance(value, list) for part in value]
    return column.is_list and bool(found) and all(
        {"start", "end", "label"} <= set(part) if isinstance(part, dict)
        else isinstance(part, list) and [type(v) for v in part] == [int, int, str]
        for part in found
    )  # fmt: skip


def _choices(columns: _Columns, wanted: bool) -> Guess | None:
    label = _label(columns, lambda c: c.repeats or c.name.lower() in LABELS) or (
        "answer" if "answer" in columns else None
    )
    several: tuple[str, ...] | str | None = next((names for names in _CHOICES if set(names) <= set(columns)), None)
    if several is None and "choices" in columns and columns["choices"].is_list:
        several = "choices"
    question = next((c.name for c in columns.values() if c.is_text and c.name != label and c.name not in (several or ())
                     and not c.is_id), None)  # fmt: skip
    if several is None or label is None or question is None:
        return None
    choices = several if isinstance(several, str) else list(several)
    section = {"kind": "multiple_choice", "text": question, "choices": choices, "label": label}
    texts = (question, *([choices] if isinstance(choices, str) else choices))
    return Guess(
        "multiple_choice",
        section,
        texts,
        [f"the candidates are in {several if isinstance(several, str) else ', '.join(several)}"],
    )


def _several_labels(columns: _Columns, wanted: bool) -> Guess | None:
    for column in columns.values():
        if not column.is_list or not all(isinstance(v, str | int) for value in column.values for v in value):
            continue
        if not wanted and (column.distinct < 2 or any(c.repeats and c.rank < column.rank for c in columns.values())):
            continue
        parts = Counter(str(part) for value in column.values for part in value)
        if parts and 3 * len(parts) <= parts.total():
            if (texts := _texts(columns, column.name)) is not None:
                return _labelled("multi-label", texts, column, [f"{column.name} holds lists of labels"])
    label = _label(columns, lambda c: c.name.lower() in LABELS)
    if label is None or (not wanted and label.lower() not in ("labels", "tags", "genres", "topics", "emotions")):
        return None
    for mark in _SEPARATORS:
        cells = [str(value).split(mark) for value in columns[label].values]
        parts = Counter(part.strip() for cell in cells for part in cell)
        if sum(len(cell) > 1 for cell in cells) > len(cells) / 10 and 3 * len(parts) <= parts.total():
            texts = _texts(columns, label)
            if texts is not None:
                made = _labelled("multi-label", texts, columns[label], [f"{label} holds labels between {mark!r}"])
                made.section["label_separator"] = mark
                return made
    return None


def _numbers(columns: _Columns, wanted: bool) -> Guess | None:
    label = _label(columns, lambda c: c.is_number and (wanted or not all(float(v).is_integer() for v in c.values)))
    texts = None if label is None else _texts(columns, label)
    if label is None or texts is None:
        return None
    made = _labelled("regression", texts, columns[label], [f"{label} holds numbers, not only whole ones"])
    made.section["problem"] = "regression"
    return made


def _pairs(columns: _Columns, wanted: bool) -> Guess | None:
    label = _label(columns, lambda c: c.repeats)
    texts = None if label is None else _texts(columns, label)
    if label is None or texts is None or len(texts) < 2:
        return None
    return _labelled("pairs", texts, columns[label], [f"{' and '.join(texts)} are read together", f"{label} repeats"])


def _classes(columns: _Columns, wanted: bool) -> Guess | None:
    label = _label(columns, lambda c: c.repeats or c.name.lower() in (LABELS if wanted else ("label", "labels")))
    texts = None if label is None else _texts(columns, label)
    if label is None or texts is None or columns[label].distinct < 2 or columns[label].words > 5:
        return None
    if wanted and len(texts) > 1:
        texts = (max(texts, key=lambda name: columns[name].words),)
    notes = [f"{label} has {columns[label].distinct} different values in {len(columns[label].values)} rows"]
    return _labelled("classification", texts, columns[label], notes)


def _embeddings(columns: _Columns, wanted: bool) -> Guess | None:
    pair = next((pair for pair in _SEARCHED if set(pair) <= set(columns)), None)
    if pair is None and wanted:
        texts = _readable(columns)
        pair = (texts[0], texts[1]) if len(texts) > 1 else None
    if pair is None:
        return None
    section: dict[str, Any] = {"kind": "embedding", "text": list(pair)}
    label = _label({n: c for n, c in columns.items() if n not in pair}, lambda c: c.is_number)
    if label is not None:
        section["label"] = label
    return Guess("embedding", section, pair, [f"{pair[0]} and {pair[1]} belong together"])


def _summaries(columns: _Columns, wanted: bool) -> Guess | None:
    pair = next((pair for pair in WRITTEN if set(pair) <= set(columns)), None)
    if pair is None and {"source", "target"} <= set(columns):
        pair = ("source", "target") if wanted or columns["source"].words > 3 * columns["target"].words else None
    if pair is None and wanted:
        texts = sorted((c for c in columns.values() if c.is_text and not c.is_id), key=lambda c: -c.words)
        pair = (texts[0].name, texts[1].name) if len(texts) > 1 else None
    if pair is None:
        return None
    return _written("summarization", pair[0], pair[1], [f"{pair[1]} is much shorter than {pair[0]}"])


def _translations(columns: _Columns, wanted: bool) -> Guess | None:
    texts = _readable(columns)
    named = [name for name in texts if re.split("[-_]", name.lower())[0] in LANGUAGES]
    found = named if len(named) == 2 else texts if wanted and len(texts) > 1 else []
    return _written("translation", found[0], found[1], [f"{found[0]} and {found[1]} are languages"]) if found else None


def _writing(columns: _Columns, wanted: bool) -> Guess | None:
    for source, target in (("source", "target"), *_ANSWERED, ("input", "output")):
        if {source, target} <= set(columns):
            found = _written("text_to_text", source, target, [f"{source} and {target} are named so"])
            if source == "instruction" and "input" in columns and columns["input"].values:
                found.section["template"] = "{instruction}\n{input}\n"
                return replace(found, beside=("input",))
            return found
    texts = _readable(columns)
    if len(texts) != 2 and not (wanted and len(texts) > 1):
        return None
    return _written("text_to_text", texts[0], texts[1], ["it has two columns of texts and no labels"])


def _readable(columns: _Columns) -> list[str]:
    """The columns of texts that are read: no ids, dates or addresses, unless there are no others."""
    texts = [c for c in columns.values() if c.is_text and not c.is_id]
    return [c.name for c in texts if not c.is_code] or [c.name for c in texts]


def _written(kind: str, source: str, target: str, notes: list[str]) -> Guess:
    return Guess(kind, {"kind": kind, "source": source, "target": target}, (source,), notes, target)


def _labelled(name: str, texts: Sequence[str], label: Column, notes: list[str]) -> Guess:
    section: dict[str, Any] = {"text": texts[0] if len(texts) == 1 else list(texts), "label": label.name}
    return Guess(name, section, tuple(texts), notes)


def _label(columns: _Columns, fits: Any) -> str | None:
    """The column of labels: one that is called so, else the last one of which values repeat."""
    for name in LABELS:
        for column in columns.values():
            if column.name.lower() == name and fits(column):
                return column.name
    others = [
        c.name for c in columns.values() if not c.is_id and c.repeats and c.words < 4 and not c.is_list and fits(c)
    ]
    return others[-1] if others else None


def _texts(columns: _Columns, label: str) -> tuple[str, ...] | None:
    """The text columns beside a label: a known pair, one or two that hold texts, else the one with the longest."""
    names = {c.name for c in columns.values() if c.name != label and not c.is_id}
    if (pair := next((pair for pair in PAIRS if set(pair) <= names), None)) is not None:
        return pair
    readable = _readable({name: c for name, c in columns.items() if name in names})
    texts = sorted((columns[name] for name in readable), key=lambda c: -c.words)
    long = [c for c in texts if c.words >= 3 and not c.repeats]
    if len(long) == 2:
        return tuple(c.name for c in columns.values() if c in long)
    return (texts[0].name,) if texts else None
