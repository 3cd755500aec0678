"""Scores of a classification or regression run: gold labels and model outputs in, a dict of numbers out.

Everything is computed in float64 over the whole split at once, never averaged over batches. Conventions:

- A value that is not defined is left out of the dict, not given as NaN: ROC-AUC and Matthews where the gold labels are
  of one class, correlations of a constant vector, R2 of constant gold, the scores of a class that is neither in the
  gold labels nor predicted. Macro averages run over the classes that are left.
- Of a class that does occur, 0/0 counts as 0: precision if it was never predicted, recall if it is not in the gold
  labels; so does Matthews when every prediction is the same class.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from jaxlm.errors import RunFailure

PRIMARY: dict[str, str] = {
    "binary": "accuracy",
    "multiclass": "accuracy",
    "multilabel": "f1_micro",
    "regression": "spearman",
}
"""What best checkpoint and early stopping go by, unless the config names another metric."""

_LOWER_IS_BETTER = frozenset(
    {"loss", "mse", "mae", "perplexity", "bits_per_byte", "generator_loss", "discriminator_loss"}
)
_PER_CLASS = ("precision", "recall", "f1")
_AVERAGED = tuple(f"{name}_{average}" for average in ("macro", "micro") for name in _PER_CLASS)
_SINGLE_LABEL = ("accuracy", *_AVERAGED, "matthews", "roc_auc")
_NAMES: dict[str, tuple[str, ...]] = {
    "binary": ("accuracy", *_PER_CLASS, *_SINGLE_LABEL[1:]),
    "multiclass": _SINGLE_LABEL,
    "multilabel": ("accuracy", *_AVERAGED, "roc_auc"),
    "regression": ("pearson", "spearman", "mse", "mae", "r2"),
}


def higher_is_better(name: str) -> bool:
    """Whether a larger value of this metric is the better one: false for losses, errors and perplexities."""
    return name not in _LOWER_IS_BETTER


def metric_names(problem: str, labels: Sequence[str] = ()) -> tuple[str, ...]:
    """Every name that `classification_metrics` can give for this problem, `f1/<label>` and its like at the end."""
    per_class = () if problem == "regression" else tuple(f"{m}/{label}" for label in labels for m in _PER_CLASS)
    return _NAMES[problem] + per_class


def predicted_labels(problem: str, scores: np.ndarray, *, threshold: float | Mapping[int, float] = 0.5) -> np.ndarray:
    """Turns scores into predictions, by the one rule that metrics and predictions share.

    Binary and multi-class, [N, C] -> int64 [N]: the label of the highest probability, the lower id on a tie.
    Multi-label, [N, C] -> int64 {0, 1} [N, C]: every label at or above `threshold`. Regression: the scores themselves.

    Args:
      threshold: a number, of all labels of a multi-label problem; or numbers by label id, where others have 0.5. Binary
        and multi-class: of at most one label, which is predicted from this probability on, else the best of the others.
    """
    if problem == "regression":
        return scores
    numbers: Mapping[int, float] = threshold if isinstance(threshold, Mapping) else {}
    if problem == "multilabel":
        other = 0.5 if isinstance(threshold, Mapping) else threshold
        limits_C = np.asarray([numbers.get(c, other) for c in range(scores.shape[-1])])
        return (scores >= limits_C).astype(np.int64)
    if not numbers:
        return scores.argmax(axis=-1)
    [(label, number)] = numbers.items()
    others = np.where(np.arange(scores.shape[-1]) == label, -np.inf, scores).argmax(axis=-1)
    return np.where(scores[:, label] >= number, label, others)


def confusion_matrix(gold: np.ndarray, predicted: np.ndarray, num_labels: int) -> np.ndarray:
    """int64 [num_labels, num_labels]: how many examples of gold label (row) were predicted as label (column)."""
    cells = np.bincount(gold * num_labels + predicted, minlength=num_labels**2)
    return cells.reshape(num_labels, num_labels)


def one_vs_rest_counts(
    gold: np.ndarray, predicted: np.ndarray, num_labels: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Counts every label against the rest.

    Args:
      gold, predicted: int [N], or {0, 1} [N, C] of a multi-label problem.
    Returns:
      True positives, predictions and gold labels, int64 [C] each.
    """
    if gold.ndim == 2:
        return (gold & predicted).sum(axis=0), predicted.sum(axis=0), gold.sum(axis=0)
    kinds = (gold[gold == predicted], predicted, gold)
    tp_C, predicted_C, gold_C = (np.bincount(labels, minlength=num_labels) for labels in kinds)
    return tp_C, predicted_C, gold_C


def never_recognised(gold: np.ndarray, predicted: np.ndarray, num_labels: int) -> list[int]:
    """Returns the labels of recall 0: they occur in `gold`, and no example of theirs is predicted as such.

    Args:
      gold, predicted: as in `one_vs_rest_counts`.
    """
    tp_C, _, gold_C = one_vs_rest_counts(gold, predicted, num_labels)
    return np.flatnonzero((gold_C > 0) & (tp_C == 0)).tolist()


def precision_recall_f1(tp: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
    """From int [C] counts of true positives, predictions and gold labels; 0/0 = 0."""
    return {
        "precision": tp / np.maximum(predicted, 1),
        "recall": tp / np.maximum(gold, 1),
        "f1": 2 * tp / np.maximum(predicted + gold, 1),
    }


def classification_metrics(
    problem: str,
    labels: np.ndarray,
    scores: np.ndarray,
    label_names: Sequence[str],
    *,
    threshold: float | Mapping[int, float] = 0.5,
) -> dict[str, float]:
    """Scores the predictions of a split.

    Args:
      problem: what `labels` and `scores` are. "binary", "multiclass": int [N] and probabilities [N, C]; "multilabel":
        {0, 1} [N, C] and probabilities [N, C]; "regression": float [N] and float [N].
      label_names: the C labels in id order; empty for regression.
      threshold: as in `predicted_labels`.

    Returns:
      `metric_names(problem, label_names)`, less what is not defined (see the module's docstring). `precision`, `recall`
      and `f1` of a binary problem are those of label id 1. `accuracy` of a multi-label problem is the share of examples
      whose whole label set is right. `roc_auc` is one label against the rest, averaged over labels with both sides
      present; in a binary problem, that of label id 1. F1 = 2 TP / (2 TP + FP + FN). `matthews` is the R_K statistic:
      Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004).

    Raises:
      ValueError: shapes that do not fit `problem`, or no examples.
      RunFailure: a score that is not finite, so that a diverged model never looks like a poor but valid one.
    """
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    _check(problem, labels, scores, len(label_names))
    if problem == "regression":
        return _regression(labels.astype(np.float64), scores)

    predicted = predicted_labels(problem, scores, threshold=threshold)
    if problem == "multilabel":
        labels = labels.astype(np.int64)
        accuracy = np.mean((labels == predicted).all(axis=1))
    else:
        accuracy = np.mean(labels == predicted)
    tp_C, predicted_C, gold_C = one_vs_rest_counts(labels, predicted, len(label_names))
    per_class = precision_recall_f1(tp_C, predicted_C, gold_C)
    occurs = (gold_C + predicted_C) > 0

    values: dict[str, Any] = {"accuracy": accuracy}
    if problem == "binary" and occurs[1]:
        values |= {name: per_class[name][1] for name in _PER_CLASS}
    if occurs.any():
        micro = precision_recall_f1(*(counts.sum(keepdims=True) for counts in (tp_C, predicted_C, gold_C)))
        values |= {f"{name}_macro": per_class[name][occurs].mean() for name in _PER_CLASS}
        values |= {f"{name}_micro": micro[name][0] for name in _PER_CLASS}
    if problem != "multilabel" and len(np.unique(labels)) > 1:
        values["matthews"] = matthews_corrcoef(labels, predicted)
    columns = [1] if problem == "binary" else range(len(label_names))
    gold_NC = labels.astype(bool) if problem == "multilabel" else labels[:, None] == np.arange(len(label_names))
    aucs = [roc_auc_score(gold_NC[:, c], scores[:, c]) for c in columns if 0 < gold_C[c] < len(labels)]
    if aucs:
        values["roc_auc"] = np.mean(aucs)
    for c in np.flatnonzero(occurs).tolist():
        values |= {f"{name}/{label_names[c]}": per_class[name][c] for name in _PER_CLASS}
    return {name: float(value) for name, value in values.items()}


def _check(problem: str, labels: np.ndarray, scores: np.ndarray, num_labels: int) -> None:
    if problem not in _NAMES:
        raise ValueError(f"problem: expected one of {', '.join(_NAMES)}; found {problem!r}")
    count = len(labels)
    if count == 0:
        raise ValueError("there are no examples to score")
    expected_scores = (count,) if problem == "regression" else (count, num_labels)
    expected_labels = (count, num_labels) if problem == "multilabel" else (count,)
    if labels.shape != expected_labels or scores.shape != expected_scores:
        raise ValueError(
            f"{problem}: expected labels {expected_labels} and scores {expected_scores}; "
            f"found {labels.shape} and {scores.shape}"
        )
    if problem in ("binary", "multiclass"):
        if labels.dtype.kind not in "iu":
            raise ValueError(f"{problem}: expected integer labels; found {labels.dtype}")
        if labels.min() < 0 or labels.max() >= num_labels:
            found = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"{problem}: expected labels from 0 to {num_labels - 1}; found {found}")
    if problem == "binary" and num_labels != 2:
        raise ValueError(f"binary: expected two labels; found {num_labels}")
    bad = np.flatnonzero(~np.isfinite(scores).reshape(count, -1).all(axis=1))
    if bad.size:
        raise RunFailure(
            f"the model's output is not finite for {bad.size} of {count} examples (first: example {bad[0]}): "
            "training has diverged; lower optimizer.learning_rate or raise optimizer.warmup"
        )


def _regression(gold: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    error = predicted - gold
    values: dict[str, Any] = {}
    gold_varies = np.ptp(gold) > 0
    if gold_varies and np.ptp(predicted) > 0:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on nearly constant input, and on p-values, which are not used
            values["pearson"] = stats.pearsonr(gold, predicted)[0]
            values["spearman"] = stats.spearmanr(gold, predicted)[0]
    values["mse"] = np.mean(error**2)
    values["mae"] = np.mean(np.abs(error))
    if gold_varies:
        values["r2"] = 1 - np.sum(error**2) / np.sum((gold - gold.mean()) ** 2)
    return {name: float(value) for name, value in values.items() if np.isfinite(value)}
