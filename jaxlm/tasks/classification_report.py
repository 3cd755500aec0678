"""What report.html says about single predictions: confusions, scores per class, calibration, the worst errors."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.metrics.classification import precision_recall_f1

_EXCERPT = 280
"""Characters shown of a text."""


@dataclass(frozen=True)
class Predictions:
    """The rows of predictions/<split>.jsonl that have both a gold label and a prediction.

    `gold` and `predicted`: int64 [N]; multi-label {0, 1} [N, C]; regression float64 [N]. `scores`: float64 [N, C];
    regression float64 [N]. `lines`: where each row stands in the file, from 1. `skipped`: rows left out.
    """

    split: str
    problem: str
    labels: tuple[str, ...]
    gold: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray
    lines: tuple[int, ...]
    texts: tuple[tuple[str, ...], ...]
    skipped: int

    def __len__(self) -> int:
        return len(self.lines)


def read_predictions(
    path: Path,
    problem: str,
    labels: Sequence[str],
    text_columns: Sequence[str],
    label_column: str,
    label_separator: str | None = None,
) -> Predictions | None:
    """Read predictions/<split>.jsonl; None if no row of it has both a gold label and a prediction.

    A gold label is a label's name, or else its id; a multi-label one is a list of them, or a string that
    `label_separator` divides.
    """
    index = {name: i for i, name in enumerate(labels)}

    def label_id(value: Any) -> int:
        if str(value) in index:
            return index[str(value)]
        number = int(value)
        if number != float(value) or not 0 <= number < len(labels):
            raise ValueError(f"no label {value!r}")
        return number

    def label_set(value: Any) -> list[int]:
        if isinstance(value, str):
            value = value.split(label_separator) if label_separator else [value]
            value = [part.strip() for part in value if part.strip()]
        ids = {label_id(part) for part in value}
        return [int(i in ids) for i in range(len(labels))]

    def one(row: dict[str, Any]) -> tuple[Any, Any, Any]:
        gold, prediction = row[label_column], row["prediction"]
        if problem == "regression":
            triple = float(gold), float(prediction["score"]), float(prediction["score"])
            if not all(map(math.isfinite, triple)):
                raise ValueError("not finite")
            return triple
        scores = [float(prediction["scores"][name]) for name in labels]
        if problem == "multilabel":
            return label_set(gold), label_set(prediction["labels"]), scores
        return label_id(gold), label_id(prediction["label"]), scores

    kept, lines, texts, skipped = [], [], [], 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                kept.append(one(row))
            except (KeyError, TypeError, ValueError):
                skipped += 1
                continue
            lines.append(number)
            texts.append(tuple(excerpt(str(row.get(column, ""))) for column in text_columns))
    if not kept:
        return None
    gold, predicted, scores = (np.array(part) for part in zip(*kept, strict=True))
    return Predictions(path.stem, problem, tuple(labels), gold, predicted, scores, tuple(lines), tuple(texts), skipped)


def excerpt(text: str) -> str:
    """The beginning of a text, cut at a word where there is one, control characters made visible."""
    text = "".join(c if c.isprintable() or c in "\n\t " else "\ufffd" for c in text[: _EXCERPT + 1])
    if len(text) <= _EXCERPT:
        return text
    cut = text[:_EXCERPT]
    return (cut.rsplit(maxsplit=1)[0] if " " in cut[-30:] else cut) + " …"


def per_class(p: Predictions) -> list[dict[str, Any]]:
    """A row per label: label, precision, recall, f1 (None if it neither occurs nor was predicted), gold, predicted."""
    if p.problem == "multilabel":
        gold_NC, predicted_NC = p.gold.astype(bool), p.predicted.astype(bool)
    else:
        classes = np.arange(len(p.labels))
        gold_NC, predicted_NC = p.gold[:, None] == classes, p.predicted[:, None] == classes
    gold_C, predicted_C = gold_NC.sum(axis=0), predicted_NC.sum(axis=0)
    scores = precision_recall_f1((gold_NC & predicted_NC).sum(axis=0), predicted_C, gold_C)
    return [
        {"label": label, "gold": int(gold_C[c]), "predicted": int(predicted_C[c])}
        | {name: float(values[c]) if gold_C[c] + predicted_C[c] else None for name, values in scores.items()}
        for c, label in enumerate(p.labels)
    ]


def top_confusions(matrix: np.ndarray, labels: Sequence[str], count: int = 15) -> list[dict[str, Any]]:
    """The largest cells off the diagonal of an int [C, C] confusion matrix: gold, predicted, count, share of gold."""
    wrong = matrix - np.diag(np.diag(matrix))
    cells = np.argsort(-wrong, axis=None, kind="stable")[:count]
    gold, predicted = (axis.tolist() for axis in np.unravel_index(cells, wrong.shape))
    return [
        {"gold": labels[g], "predicted": labels[p], "count": int(wrong[g, p]), "share": wrong[g, p] / matrix[g].sum()}
        for g, p in zip(gold, predicted, strict=True)
        if wrong[g, p]
    ]


def calibration(p: Predictions, bins: int = 10) -> tuple[np.ndarray, np.ndarray, float]:
    """Confidence of the predicted label against how often it is right.

    Returns mean confidence and accuracy, float64 [bins that are not empty], and the expected calibration error, the sum
    over bins of n_b / N |accuracy_b - confidence_b|: Guo et al., "On Calibration of Modern Neural Networks" (2017).
    """
    confidence = p.scores[np.arange(len(p)), p.predicted]
    right = p.gold == p.predicted
    bin_N = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(bin_N, minlength=bins)
    full = counts > 0
    mean_confidence = np.bincount(bin_N, confidence, minlength=bins)[full] / counts[full]
    accuracy = np.bincount(bin_N, right, minlength=bins)[full] / counts[full]
    error = float(np.sum(counts[full] / len(p) * np.abs(accuracy - mean_confidence)))
    return mean_confidence, accuracy, error


def worst_errors(p: Predictions, count: int = 20) -> list[dict[str, Any]]:
    """The predictions that are wrong with the highest confidence; in a regression, the furthest off.

    Each has line, texts, gold and predicted; with labels, `probability` of the predicted one and `gold_probability`;
    multi-label, `label`, the one most in error, and its `probability`; in a regression, `error`.
    """
    if p.problem == "regression":
        badness = np.abs(p.predicted - p.gold)
    elif p.problem == "multilabel":
        wrong_NC = p.gold != p.predicted
        badness = np.where(wrong_NC, np.abs(p.gold - p.scores), 0).max(axis=1)
    else:
        badness = np.where(p.gold != p.predicted, p.scores[np.arange(len(p)), p.predicted], 0)
    order = [i for i in np.argsort(-badness, kind="stable").tolist() if badness[i] > 0][:count]
    return [{"line": p.lines[i], "texts": p.texts[i], **_error(p, i)} for i in order]


def _error(p: Predictions, i: int) -> dict[str, Any]:
    if p.problem == "regression":
        gold, predicted = float(p.gold[i]), float(p.predicted[i])
        return {"gold": f"{gold:.4g}", "predicted": f"{predicted:.4g}", "error": predicted - gold}
    scores = p.scores[i]
    if p.problem == "multilabel":
        gold, predicted = (
            ", ".join(p.labels[c] for c in np.flatnonzero(v[i])) or "none" for v in (p.gold, p.predicted)
        )
        worst = int(np.where(p.gold[i] != p.predicted[i], np.abs(p.gold[i] - scores), 0).argmax())
        return {"gold": gold, "predicted": predicted, "label": p.labels[worst], "probability": float(scores[worst])}
    gold, predicted = int(p.gold[i]), int(p.predicted[i])
    return {
        "gold": p.labels[gold],
        "predicted": p.labels[predicted],
        "probability": float(scores[predicted]),
        "gold_probability": float(scores[gold]),
    }
