"""Sections of report.html about tags: scores by type, what is taken for what, sentences with mistakes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.metrics.entities import OUTSIDE, Entity, entity_scores
from jaxlm.report.sections import ReportSection, excerpt
from jaxlm.tasks.tagged_rows import Words, written_entities

_SENTENCES = 20
_TYPES = 300
_MATRIX = 25


class TaggedSentence(NamedTuple):
    """A labelled sentence: its line in the file of predictions, its words, and ids of its gold and predicted tags."""

    line: int
    words: Words
    gold: np.ndarray
    predicted: np.ndarray


def tagging_sections(
    rows: Sequence[TaggedSentence], label_names: Sequence[str], entities_of: Callable[[np.ndarray], list[Entity]]
) -> list[ReportSection]:
    """Describes the tags of a split; of bounded size.

    Args:
      entities_of: of tag ids; [] for bare tags.
    """
    if not rows:
        return []
    gold, predicted = [entities_of(row.gold) for row in rows], [entities_of(row.predicted) for row in rows]
    if any(gold) or any(predicted):
        sections = [_by_type(gold, predicted), _kinds_of_mistakes(gold, predicted)]
    else:
        sections = [_tag_matrix(rows, label_names)]
    return [*sections, *_worst(rows, gold, predicted, label_names)]


def _by_type(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> ReportSection:
    scores = entity_scores(gold, predicted)
    support = Counter(entity.label for entities in gold for entity in entities)
    types = sorted({name.split("/", 1)[1] for name in scores if "/" in name}, key=lambda t: (-support[t], t))
    rows = [
        [excerpt(t, 80), support[t], *(scores[f"{name}/{t}"] for name in ("precision", "recall", "f1"))]
        for t in types[:_TYPES]
    ]
    columns = ["Type", "Entities", "Precision", "Recall", "F1"]
    return ReportSection("Entities by type", "table", {"columns": columns, "rows": rows, "bars": "F1"})


def _kinds_of_mistakes(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> ReportSection:
    counts: Counter[str] = Counter()
    for theirs, ours in zip(gold, predicted, strict=True):
        spans, overlapped = {(e.start, e.end): e.label for e in theirs}, set[Entity]()
        for entity in ours:
            touching = [e for e in theirs if e.start < entity.end and e.end > entity.start]
            overlapped.update(touching)
            if spans.get((entity.start, entity.end)) == entity.label:
                counts["right"] += 1
            elif (entity.start, entity.end) in spans:
                counts["right place, wrong type"] += 1
            elif any(e.label == entity.label for e in touching):
                counts["right type, wrong ends"] += 1
            elif touching:
                counts["wrong type and ends"] += 1
            else:
                counts["invented"] += 1
        counts["missed"] += len(set(theirs) - overlapped)
    names = ("right", "right place, wrong type", "right type, wrong ends", "wrong type and ends", "invented", "missed")
    rows = [[name, counts[name]] for name in names]
    return ReportSection("Kinds of mistakes", "table", {"columns": ["Entities", "Count"], "rows": rows})


def _tag_matrix(rows: Sequence[TaggedSentence], label_names: Sequence[str]) -> ReportSection:
    count = len(label_names)
    matrix = np.zeros((count, count), np.int64)
    for row in rows:
        np.add.at(matrix, (row.gold.astype(int), row.predicted.astype(int)), 1)
    chosen = np.sort(np.argsort(-matrix.sum(1), kind="stable")[:_MATRIX])
    names = [label_names[int(i)] for i in chosen]
    content = {
        "labels": [excerpt(name, 80) for name in names],
        "counts": matrix[np.ix_(chosen, chosen)],
        "totals": matrix.sum(1)[chosen],
    }
    return ReportSection("Tags", "matrix", content)


def _worst(
    rows: Sequence[TaggedSentence],
    gold: Sequence[Sequence[Entity]],
    predicted: Sequence[Sequence[Entity]],
    label_names: Sequence[str],
) -> list[ReportSection]:
    """The sentences with most mistakes."""
    wrong = [len(set(theirs) ^ set(ours)) or int((row.gold != row.predicted).sum())
             for row, theirs, ours in zip(rows, gold, predicted, strict=True)]  # fmt: skip
    worst = [i for i in np.argsort(-np.asarray(wrong), kind="stable")[:_SENTENCES].tolist() if wrong[i]]
    if not worst:
        return []
    shown: list[list[int | str]] = []
    for i in worst:
        line, words, theirs, ours = rows[i]
        if gold[i] or predicted[i]:
            cells = [_entity_list(found[i], words) for found in (gold, predicted)]
        else:
            cells = [_tag_list(tags, words, theirs != ours, label_names) for tags in (theirs, ours)]
        shown.append([line, excerpt(words.text), *cells])
    columns = ["Line", "Text", "Gold", "Predicted"]
    note = "Line numbers are those of the split's file in predictions/."
    return [ReportSection("Sentences with most mistakes", "texts", {"columns": columns, "rows": shown}, note)]


def _entity_list(entities: Sequence[Entity], words: Words) -> str:
    found = [f"{e['label']}: {excerpt(e['text'], 80)}" for e in written_entities(entities, words)]
    return "\n".join(found[:20]) or OUTSIDE


def _tag_list(tags: np.ndarray, words: Words, wrong: np.ndarray, label_names: Sequence[str]) -> str:
    found = [
        f"{words.text[start:end]}: {label_names[int(tag)]}"
        for tag, (start, end), bad in zip(tags, words.spans, wrong, strict=True) if bad
    ]  # fmt: skip
    return "\n".join(excerpt(line, 80) for line in found[:20])
