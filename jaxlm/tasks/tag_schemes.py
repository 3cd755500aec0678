"""Schemes of tags: how they are told, converted, and which tags may follow which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from jaxlm.errors import UserError
from jaxlm.metrics.entities import OUTSIDE, Entity, entities_of, split_tag

Scheme = Literal["bio", "iob1", "iobes", "bmes", "bare"]
"""bio: B begins an entity, I goes on. iob1: B only where an entity touches one of its type. iobes: E ends, S is alone
(bilou is read as it). bmes: as iobes, M for I. bare: a class to each token, without entities."""

_MARKS = {"bio": "BI", "iob1": "BI", "iobes": "BIESLU", "bmes": "BMES"}
_FORBIDDEN = -1e9
"""Score of what may not be; finite, so that a sequence without a legal path still has a best one."""


def detect_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Tells the scheme that tags are written in; one odd tag in ten does not change it."""
    marks: Counter[str] = Counter()
    bare = 0
    begins = False  # an entity begins with I, which BIO never writes
    for tags in sentences:
        previous = (OUTSIDE, "")
        for tag in tags:
            if tag == OUTSIDE:
                previous = (OUTSIDE, "")
                continue
            mark, _, label = tag.partition("-")
            if not has_mark(tag):
                bare += 1
                continue
            marks[mark] += 1
            begins |= mark == "I" and (previous[0] == OUTSIDE or previous[1] != label)
            previous = (mark, label)
    if bare and bare >= marks.total():
        return "bare"
    if marks["M"] > 0.1 * (marks["M"] + marks["I"]):
        return "bmes"
    single = marks["S"] + marks["U"]
    if marks["E"] + marks["L"] + single > 0.1 * (marks["B"] + single):  # each entity has one of these
        return "iobes"
    return "iob1" if begins else "bio"


def check_mark(tag: str, scheme: Scheme) -> None:
    """Refuses a tag whose mark the scheme of the other tags does not have.

    Raises:
      UserError: that is so.
    """
    if scheme != "bare" and has_mark(tag) and tag[0] not in _MARKS[scheme]:
        raise UserError(f"tag {tag!r} is not of the scheme that the others are written in, {scheme} (marks "
                        f"{', '.join(_MARKS[scheme])})")  # fmt: skip


def has_mark(tag: str) -> bool:
    """Whether a tag is a mark of a scheme and a type, "B-PER"."""
    return len(tag) > 2 and tag[1] == "-" and tag[0] in "BIMELSU"


def write_tags(entities: Iterable[Entity], length: int, scheme: Scheme) -> list[str]:
    """Returns the tags of a sentence of `length` tokens; of entities that overlap, the first stands."""
    tags = [OUTSIDE] * length
    ordered = sorted(entities, key=lambda entity: (entity.start, -entity.end))
    previous: Entity | None = None
    for entity in ordered:
        if previous is not None and entity.start < previous.end:
            continue
        for i in range(entity.start, entity.end):
            tags[i] = f"{_mark(entity, i, scheme, previous)}-{entity.label}"
        previous = entity
    return tags


def _mark(entity: Entity, i: int, scheme: Scheme, previous: Entity | None) -> str:
    first, last = i == entity.start, i == entity.end - 1
    if scheme == "iob1":
        touches = previous is not None and previous.end == entity.start and previous.label == entity.label
        return "B" if first and touches else "I"
    if scheme in ("iobes", "bmes"):
        if first and last:
            return "S"
        return "B" if first else "E" if last else ("M" if scheme == "bmes" else "I")
    return "B" if first else "I"


def convert_tags(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """Writes the entities of a sequence in another scheme; "bare" tags stay as they are."""
    return list(tags) if scheme == "bare" else write_tags(entities_of(tags), len(tags), scheme)


def tag_names(types: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """Returns the tags of a model over entity types: O first, then those of each type."""
    marks = {"bio": "BI", "iob1": "BI", "iobes": "BIES", "bmes": "BMES"}
    if scheme == "bare":
        return tuple(types)
    return (OUTSIDE, *(f"{mark}-{label}" for label in types for mark in marks[scheme]))


def transition_scores(names: Sequence[str], scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what may stand where: 0 where legal, a large negative number elsewhere.

    Returns:
      start [C], between [C, C] (from, to), end [C], float64.
    """
    count = len(names)
    start, between, end = np.zeros(count), np.zeros((count, count)), np.zeros(count)
    if scheme in ("bare", "iob1"):
        return start, between, end
    tags = [split_tag(name) for name in names]
    for j, (mark, label) in enumerate(tags):
        inside = mark in "IE"
        start[j] = _FORBIDDEN if inside else 0.0
        for i, (before, other) in enumerate(tags):
            is_open = before in ("BI" if scheme != "bio" else "")
            fits = before in "BI" and other == label if inside else not is_open
            between[i, j] = 0.0 if fits else _FORBIDDEN
        end[j] = _FORBIDDEN if scheme != "bio" and mark in "BI" else 0.0
    return start, between, end


def viterbi(scores: np.ndarray, transitions: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Returns the sequence of tags with the greatest sum of scores (Viterbi, 1967): int [W] from float [W, C]."""
    start, between, end = transitions
    if not len(scores):
        return np.zeros(0, np.int64)
    best = scores[0] + start
    back = np.zeros(scores.shape, np.int64)
    for i in range(1, len(scores)):
        candidates = best[:, None] + between
        back[i] = candidates.argmax(0)
        best = candidates.max(0) + scores[i]
    path = [int((best + end).argmax())]
    for i in range(len(scores) - 1, 0, -1):
        path.append(int(back[i, path[-1]]))
    return np.asarray(path[::-1])


def tag_between(before: str, after: str, names: Sequence[str]) -> str | None:
    """Returns the tag of a word of which nothing is known: inside where the words around it are of one entity.

    Args:
      before, after: tags of the words around it.
      names: the tags that there are.
    Returns:
      One of `names`; None where it is outside.
    """
    (mark, label), (next_mark, next_label) = split_tag(before), split_tag(after)
    if mark not in "BI" or next_mark not in "IE" or label != next_label or not has_mark(before):
        return None
    return next((name for name in (f"I-{label}", f"M-{label}") if name in names), None)


def check_tag(tag: object, names: Sequence[str]) -> str:
    """Returns a tag.

    Raises:
      UserError: it is no string, or not one of `names`.
    """
    if not isinstance(tag, str) or tag not in names:
        raise UserError(f"tag {tag!r} is not one of the {len(names)} tags ({', '.join(names[:12])}"
                        f"{', ...' if len(names) > 12 else ''})")  # fmt: skip
    return tag


def bare_entities(tags: np.ndarray, names: Sequence[str]) -> list[Entity]:
    """Each token as an entity of its own, so that scores by type are those of the tags."""
    return [Entity(names[int(tag)], i, i + 1) for i, tag in enumerate(tags)]
