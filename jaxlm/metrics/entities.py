"""Entities in tag sequences, and precision, recall and F1 of predicted ones, as conlleval defines them.

Tags are "O", or a mark and a type ("B-PER"). Marks: B begins, I (in BMES: M) goes on, E (L) ends, S (U) is an entity of
one token. Source: the conlleval script of the CoNLL shared tasks (Tjong Kim Sang and Buchholz, 2000).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

OUTSIDE = "O"
_MARKS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


class Entity(NamedTuple):
    """Tokens `start` to `end`, exclusive, of a type."""

    label: str
    start: int
    end: int


def split_tag(tag: str) -> tuple[str, str]:
    """Returns mark (B, I, E, S or O) and type of a tag; of one without a mark, I and the tag itself."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    mark, dash, label = tag.partition("-")
    if not dash or mark not in _MARKS:
        return "I", tag
    return _MARKS[mark], label


def entities_of(tags: Sequence[str], *, strict: bool = False) -> list[Entity]:
    """Returns the entities of a sequence, in order.

    Args:
      strict: only those that are written as their scheme has it: B I I in BIO, and B I E or S where the sequence has a
        mark E or S. Otherwise as conlleval: a change of type, and whatever follows O, E or S, begins one, too.
    """
    found: list[Entity] = []
    marks: list[str] = []
    start, open_label = 0, ""
    ends = any(split_tag(tag)[0] in "ES" for tag in tags)
    previous = OUTSIDE
    for i, tag in enumerate([*tags, OUTSIDE]):
        mark, label = split_tag(tag)
        if previous != OUTSIDE and (previous in "ES" or mark in "BSO" or label != open_label):
            if not strict or _well_formed(marks, ends):
                found.append(Entity(open_label, start, i))
            marks = []
        if mark != OUTSIDE and not marks:
            start, open_label = i, label
        if mark != OUTSIDE:
            marks.append(mark)
        previous = mark
    return found


def _well_formed(marks: Sequence[str], ends: bool) -> bool:
    first, *rest = marks
    if not ends:
        return first == "B" and all(mark == "I" for mark in rest)
    if not rest:
        return first == "S"
    return first == "B" and rest[-1] == "E" and all(mark == "I" for mark in rest[:-1])


def entity_scores(gold: Iterable[Sequence[Entity]], predicted: Iterable[Sequence[Entity]]) -> dict[str, float]:
    """Scores predicted entities: one is right if a gold one has its label, start and end.

    Args:
      gold, predicted: of each sentence.
    Returns:
      `precision`, `recall`, `f1` over all entities, `f1_macro`, the mean over types, and `f1/TYPE`, `precision/TYPE`,
      `recall/TYPE`. A ratio of nothing is 0.
    """
    expected: Counter[str] = Counter()
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for theirs, ours in zip(gold, predicted, strict=True):
        expected.update(entity.label for entity in theirs)
        found.update(entity.label for entity in ours)
        right.update(entity.label for entity in set(theirs) & set(ours))
    scores = _ratios(right.total(), found.total(), expected.total())
    types = sorted(expected | found)
    each = {label: _ratios(right[label], found[label], expected[label]) for label in types}
    scores["f1_macro"] = sum(values["f1"] for values in each.values()) / max(1, len(each))
    return scores | {f"{name}/{label}": value for label, values in each.items() for name, value in values.items()}


def _ratios(right: int, found: int, expected: int) -> dict[str, float]:
    precision, recall = right / max(1, found), right / max(1, expected)
    return {"precision": precision, "recall": recall, "f1": 2 * right / max(1, found + expected)}
