"""Sections of report.html about single predictions: confusions, scores by label, calibration, the worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxlm.metrics.classification import confusion_matrix, one_vs_rest_counts, precision_recall_f1
from jaxlm.report.sections import ReportSection, excerpt
from jaxlm.tasks.calibration import abstention_sections, calibration_section

_MATRIX_LABELS = 25
"""Most labels of a confusion matrix."""
_TABLE_LABELS = 300
_CONFUSIONS = 15
_SCATTER_POINTS = 500
_ERRORS = 20
_NAME_LENGTH = 80
"""Characters shown of a label."""


class PredictedRow(NamedTuple):
    """A row, its gold label (None: unlabelled), and its prediction as predictions/<split>.jsonl has it."""

    row: Mapping[str, Any]
    label: Any
    prediction: dict[str, Any]


@dataclass(frozen=True)
class _Scored:
    """The answers with a gold label.

    `gold` and `predicted`: int64 [N]; multi-label {0, 1} [N, C]; regression float64 [N]. `scores`: float64 [N, C];
    regression [N]. `lines`: [N], of predictions/<split>.jsonl, from 1. `rows`: [N], input rows.
    """

    problem: str
    names: tuple[str, ...]
    gold: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    lines: tuple[int, ...]
    rows: tuple[Mapping[str, Any], ...]


def classification_sections(
    problem: str, label_names: Sequence[str], answers: Sequence[PredictedRow], text_columns: Sequence[str]
) -> list[ReportSection]:
    """Describes the predictions of a split; of bounded size, whatever the size of the split.

    Args:
      problem: binary, multiclass, multilabel or regression.
      label_names: the C labels in id order; of a regression, anything.
      answers: of the whole split, in the order of its predictions file. `label`: an int, a float (regression) or {0, 1}
        [C] (multi-label).
      text_columns: of a row, shown with the worst errors.
    Returns:
      The sections; [] if no answer has a gold label.
    """
    labelled = [(line, answer) for line, answer in enumerate(answers, 1) if answer.label is not None]
    if not labelled:
        return []
    p = _scored(problem, label_names, labelled)
    if problem == "regression":
        sections = [_scatter(p)]
    elif problem == "multilabel":
        sections = [_scores_by_label(p), _calibration_of_labels(p)]
    else:
        sections = [*_confusions(p), _calibration(p), *_abstention(p), _scores_by_label(p)]
    sections += _worst_errors(p, text_columns)
    opening = _opening(p, len(answers) - len(labelled))
    return [sections[0]._replace(note=f"{opening} {sections[0].note}".strip()), *sections[1:]]


def training_section(
    counts: Mapping[str, int], sampled: Mapping[str, int], weights: Mapping[str, float]
) -> list[ReportSection]:
    """Shows what a run was trained on; [] where that is not known.

    Args:
      counts: training rows of each label.
      sampled: those of an epoch, where they are others; else {}.
      weights: of each label in the loss; {}: all the same.
    """
    if not counts:
        return []
    names = list(dict.fromkeys([*sampled, *weights, *counts]))[:_TABLE_LABELS]
    total, drawn = sum(counts.values()), sum(sampled.values())
    columns, rows = ["Label", "Rows", "Share"], []
    if sampled:
        columns += ["In an epoch", "Share then"]
    if weights:
        columns.append("Weight")
    for name in names:
        row: list[Any] = [excerpt(name, _NAME_LENGTH), counts.get(name, 0), f"{counts.get(name, 0) / total:.1%}"]
        row += [sampled[name], f"{sampled[name] / drawn:.1%}"] if sampled else []
        rows.append([*row, *([weights[name]] if weights else [])])
    return [ReportSection("Training rows by label", "table", {"columns": columns, "rows": rows})]


def _scored(problem: str, label_names: Sequence[str], labelled: Sequence[tuple[int, PredictedRow]]) -> _Scored:
    predictions = [answer.prediction for _, answer in labelled]
    gold = np.array([answer.label for _, answer in labelled], np.float64 if problem == "regression" else np.int64)
    if problem == "regression":
        scores = predicted = np.array([p["score"] for p in predictions], np.float64)
    else:
        ids = {name: i for i, name in enumerate(label_names)}
        scores = np.array([[p["scores"][name] for name in label_names] for p in predictions], np.float64)
        if problem == "multilabel":
            predicted = np.zeros(gold.shape, np.int64)
            for i, p in enumerate(predictions):
                predicted[i, [ids[name] for name in p["labels"]]] = 1
        else:
            predicted = np.array([ids[p["label"]] for p in predictions], np.int64)
    names = tuple(excerpt(name, _NAME_LENGTH) for name in label_names)
    lines, rows = tuple(line for line, _ in labelled), tuple(answer.row for _, answer in labelled)
    return _Scored(problem, names, gold, predicted, scores, lines, rows)


def _opening(p: _Scored, num_unlabelled: int) -> str:
    """Says how many examples there are, and how many of them are wrong."""
    count = len(p.lines)
    text = f"{count:,} examples"
    if p.problem != "regression":
        wrong = p.gold != p.predicted
        num_wrong = int((wrong.any(axis=1) if wrong.ndim > 1 else wrong).sum())
        text += f", {num_wrong:,} of them wrong ({num_wrong / count:.1%})"
    if num_unlabelled:
        text += f"; {num_unlabelled:,} more rows have no gold label and are not counted"
    return text + "."


def _confusions(p: _Scored) -> list[ReportSection]:
    """The confusion matrix, of many labels that of the most confused ones; and the most frequent confusions."""
    num_labels = len(p.names)
    wrong = p.gold != p.predicted
    pairs, counts = np.unique(np.stack([p.gold[wrong], p.predicted[wrong]]), axis=1, return_counts=True)
    gold_C = np.bincount(p.gold, minlength=num_labels)

    shown, note = np.arange(num_labels), "Shade: share of the gold label's examples."
    if num_labels > _MATRIX_LABELS:
        errors_C = np.bincount(p.gold[wrong], minlength=num_labels)
        errors_C += np.bincount(p.predicted[wrong], minlength=num_labels)
        worst = np.argsort(-errors_C, kind="stable")[:_MATRIX_LABELS]
        shown = np.sort(worst[errors_C[worst] > 0])
        note = f"The {len(shown)} of {num_labels:,} labels that are most often confused. {note}"
    sections = []
    if len(shown):
        place_C = np.full(num_labels, -1)
        place_C[shown] = np.arange(len(shown))
        inside = (place_C[p.gold] >= 0) & (place_C[p.predicted] >= 0)
        matrix = confusion_matrix(place_C[p.gold[inside]], place_C[p.predicted[inside]], len(shown))
        content = {"labels": [p.names[c] for c in shown], "counts": matrix, "totals": gold_C[shown]}
        sections.append(ReportSection("Confusion matrix", "matrix", content, note))
    if len(counts) and num_labels > 2:
        order = np.argsort(-counts, kind="stable")[:_CONFUSIONS]
        rows = [[p.names[g], p.names[q], n, f"{n / gold_C[g]:.1%}"] for g, q, n in
                zip(*pairs[:, order].tolist(), counts[order].tolist(), strict=True)]  # fmt: skip
        content = {"columns": ["Gold", "Predicted", "Count", "Of gold"], "rows": rows}
        sections.append(ReportSection("Most frequent confusions", "table", content))
    return sections


def _scores_by_label(p: _Scored) -> ReportSection:
    """Precision, recall, F1 and counts of every label; of many labels, those of the lowest F1."""
    tp_C, predicted_C, gold_C = one_vs_rest_counts(p.gold, p.predicted, len(p.names))
    scores = precision_recall_f1(tp_C, predicted_C, gold_C)
    occurs = gold_C + predicted_C > 0
    order, note = np.arange(len(p.names)), ""
    if len(order) > _MATRIX_LABELS:
        order = np.argsort(np.where(occurs, scores["f1"], np.inf), kind="stable")[:_TABLE_LABELS]
        note = "By F1, the lowest first"
        note += "." if len(order) == len(p.names) else f"; {len(order)} of {len(p.names):,} labels."
    rows = [
        [p.names[c], *(float(scores[name][c]) if occurs[c] else None for name in scores), gold_C[c], predicted_C[c]]
        for c in order
    ]
    columns = ["Label", "Precision", "Recall", "F1", "Gold", "Predicted"]
    return ReportSection("Scores by label", "table", {"columns": columns, "rows": rows, "bars": "F1"}, note)


def _calibration(p: _Scored) -> ReportSection:
    return calibration_section(
        p.scores[np.arange(len(p.gold)), p.predicted],
        p.gold == p.predicted,
        predicted="probability of the predicted label",
        share="share that is right",
    )


def _abstention(p: _Scored) -> list[ReportSection]:
    return abstention_sections(p.scores[np.arange(len(p.gold)), p.predicted], p.gold == p.predicted)


def _calibration_of_labels(p: _Scored) -> ReportSection:
    """Of every label of every row."""
    scores, gold = p.scores.reshape(-1), p.gold.reshape(-1) > 0
    return calibration_section(scores, gold, predicted="probability of a label", share="share that has it")


def _scatter(p: _Scored) -> ReportSection:
    """Predicted against gold values, of a large split a sample."""
    count = len(p.gold)
    shown = np.unique(np.linspace(0, count - 1, min(count, _SCATTER_POINTS)).astype(int))
    content = {
        "series": [{"x": p.gold[shown], "y": p.predicted[shown], "style": "dots"}],
        "axes": {"x": "gold", "y": "predicted", "diagonal": True},
        "alt": f"Predicted against gold values of {len(shown)} examples",
    }
    note = "" if len(shown) == count else f"{len(shown):,} of them are drawn, at even distances in the file."
    return ReportSection("Predicted against gold", "chart", content, note)


def _worst_errors(p: _Scored, text_columns: Sequence[str]) -> list[ReportSection]:
    """The wrong predictions of the highest confidence; of a regression, those furthest off. [] if nothing is wrong."""
    note = "Wrong, and most confident"
    if p.problem == "regression":
        columns, note = ("Error",), "Furthest from the gold value"
        badness = np.abs(p.predicted - p.gold)
    elif p.problem == "multilabel":
        columns = ("Worst label", "Its probability")
        badness = np.where(p.gold != p.predicted, np.abs(p.gold - p.scores), 0).max(axis=1)
    else:
        columns = ("P(predicted)", "P(gold)")
        badness = np.where(p.gold != p.predicted, p.scores[np.arange(len(p.gold)), p.predicted], 0)
    order = [i for i in np.argsort(-badness, kind="stable")[:_ERRORS].tolist() if badness[i] > 0]
    rows = [
        [p.lines[i], *(excerpt(str(p.rows[i].get(column, ""))) for column in text_columns), *_error(p, i)]
        for i in order
    ]
    content = {"columns": ["Line", *text_columns, "Gold", "Predicted", *columns], "rows": rows}
    note += "; line numbers are those of the split's file in predictions/."
    return [ReportSection("Worst errors", "texts", content, note)] if rows else []


def _error(p: _Scored, i: int) -> list[Any]:
    """Gold, predicted, and how wrong it is."""
    gold, predicted, scores = p.gold[i], p.predicted[i], p.scores[i]
    if p.problem == "regression":
        return [f"{gold:.4g}", f"{predicted:.4g}", f"{predicted - gold:+.3g}"]
    if p.problem == "multilabel":
        shown = [excerpt(", ".join(p.names[c] for c in np.flatnonzero(v))) or "none" for v in (gold, predicted)]
        worst = int(np.where(gold != predicted, np.abs(gold - scores), 0).argmax())
        return [*shown, p.names[worst], float(scores[worst])]
    return [p.names[gold], p.names[predicted], float(scores[predicted]), float(scores[gold])]
