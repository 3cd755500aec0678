"""Decision thresholds of the highest score, found by trying every one that decides otherwise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.metrics.classification import predicted_labels

FALLBACK = "f1_macro"
"""What thresholds are chosen by where the metric does not depend on them."""
_INDEPENDENT = ("loss", "roc_auc", "ece")
_SINGLE = ("accuracy", "f1", "f1_macro", "f1_micro", "precision_macro", "precision_micro", "recall_macro",
           "recall_micro", "matthews")  # fmt: skip
_SEVERAL = ("accuracy", "f1_macro", "f1_micro")
_TURNS = 100


class Cuts(NamedTuple):
    """The ways to cut a class off by its probability: the k most probable rows, from none to all.

    Attributes:
      order: int [N], rows by falling probability.
      sizes: int [K], the k that no tie forbids, ascending.
      values: float64 [K], a threshold for each, halfway between two rows.
    """

    order: np.ndarray
    sizes: np.ndarray
    values: np.ndarray


def cuts_of(probabilities: np.ndarray) -> Cuts:
    """Returns the cuts of probabilities [N]; the first is above all of them, the last below."""
    order = np.argsort(-probabilities, kind="stable")
    p = probabilities[order]
    inner = np.flatnonzero(p[:-1] > p[1:]) + 1
    middle = (p[inner - 1] + p[inner]) / 2
    middle = np.where(middle > p[inner], middle, p[inner - 1])  # neighbours of which the mean rounds down
    above = (p[0] + 1) / 2 if p[0] < 1 else np.nextafter(1.0, 2.0)
    above = above if above > p[0] else np.nextafter(p[0], 2.0)
    sizes = np.concatenate([[0], inner, [len(p)]])
    return Cuts(order, sizes, np.concatenate([[above], middle, [p[-1] / 2]]))


def decides(problem: str, metric: str, label_names: Collection[str]) -> str | None:
    """Returns what thresholds of a problem are chosen by where checkpoints are chosen by `metric`: itself, or
    `FALLBACK`; None where the best threshold by it predicts all or nothing, as by recall."""
    if metric in _INDEPENDENT:
        return FALLBACK
    known = _SEVERAL if problem == "multilabel" else _SINGLE
    if metric in known and (metric != "f1" or problem == "binary"):
        return metric
    name, _, label = metric.partition("/")
    return metric if name == "f1" and label in label_names else None


def best_threshold(
    labels: np.ndarray, probabilities: np.ndarray, label: int, score: Callable[..., np.ndarray]
) -> float:
    """Returns the threshold of one class against the rest of the highest score; of equal ones, the nearest to 0.5.

    The class is predicted from this probability on, and otherwise the likeliest of the others.

    Args:
      labels: int [N].
      probabilities: float [N, C].
      score: (true positives [K, C], predictions [K, C], gold [C]) -> [K]; see `counted`.
    """
    num_rows, num_labels = probabilities.shape
    cuts = cuts_of(probabilities[:, label])
    others = np.where(np.arange(num_labels) == label, -np.inf, probabilities).argmax(1)[cuts.order]
    gold = labels[cuts.order]
    classes = np.arange(num_labels)
    was, is_gold = others[:, None] == classes, gold[:, None] == classes
    now = np.broadcast_to(classes == label, was.shape)
    moved = np.cumsum(now.astype(np.int32) - was, axis=0)
    hits = np.cumsum((now & is_gold).astype(np.int32) - (was & is_gold), axis=0)
    inside = cuts.sizes - 1
    predicted = was.sum(0) + np.where(cuts.sizes[:, None] > 0, moved[inside], 0)
    tp = (was & is_gold).sum(0) + np.where(cuts.sizes[:, None] > 0, hits[inside], 0)
    return _best(score(tp, predicted, np.bincount(gold, minlength=num_labels)), cuts)


def counted(metric: str, label_names: Sequence[str]) -> Callable[..., np.ndarray]:
    """Returns the function of counts, see `best_threshold`, that is this metric of one label to a row."""

    def score(tp: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> np.ndarray:
        total = gold.sum()
        if metric == "accuracy" or metric.endswith("_micro"):
            return tp.sum(-1) / total
        if metric == "matthews":
            covariance = tp.sum(-1) * float(total) - (predicted * gold).sum(-1)
            spread = (float(total) ** 2 - (predicted.astype(float) ** 2).sum(-1)) * float(total**2 - (gold**2).sum())
            return np.where(spread > 0, covariance / np.sqrt(np.maximum(spread, 1.0)), 0.0)
        each = {
            "precision": tp / np.maximum(predicted, 1),
            "recall": tp / np.maximum(gold, 1),
            "f1": 2 * tp / np.maximum(predicted + gold, 1),
        }[metric.partition("/")[0].partition("_")[0]]
        if metric.endswith("_macro"):
            occurs = predicted + gold > 0
            return (each * occurs).sum(-1) / occurs.sum(-1)
        return each[..., label_names.index(metric.partition("/")[2]) if "/" in metric else 1]

    return score


def best_thresholds(
    labels: np.ndarray, probabilities: np.ndarray, tuned: Collection[int], others: Mapping[int, float], metric: str
) -> dict[int, float]:
    """Returns a threshold of each of several labels to a row, which together give the highest score.

    By `f1_macro` and `f1/LABEL` each label has that of its own highest F1. By `f1_micro` the best set is found exactly:
    2 TP - x (predictions + gold) is the sum of the labels' own terms, and x rises to its highest (Dinkelbach, 1967). By
    `accuracy` each label in turn takes its best threshold until none changes, from those of `f1_micro` and from 0.5 on.
    A label that no row has keeps 0.5.

    Args:
      labels: {0, 1} [N, C].
      probabilities: float [N, C].
      tuned: labels to choose for.
      others: thresholds of other labels; 0.5 where there is none.
    """
    gold = labels.astype(bool)
    chosen = dict.fromkeys((c for c in tuned if gold[:, c].any()), 0.5)
    cuts = {c: cuts_of(probabilities[:, c]) for c in chosen}
    if metric not in ("f1_micro", "accuracy"):
        return {c: _best(_f1(gold[:, c], cuts[c]), cuts[c]) for c in chosen}
    micro = _best_micro(gold, probabilities, cuts, others)
    if metric == "f1_micro":
        return micro
    found = [_climb(gold, probabilities, cuts, start, others) for start in (micro, chosen)]
    return max(found, key=lambda each: _exact(gold, probabilities, {**others, **each}))


def _best(scores: np.ndarray, cuts: Cuts) -> float:
    best = np.flatnonzero(scores >= scores.max() - 1e-12)
    return float(cuts.values[best[np.abs(cuts.values[best] - 0.5).argmin()]])


def _hits(gold: np.ndarray, cuts: Cuts) -> np.ndarray:
    """True positives of each cut, int [K]."""
    return np.append(0, np.cumsum(gold[cuts.order]))[cuts.sizes]


def _f1(gold: np.ndarray, cuts: Cuts) -> np.ndarray:
    return 2 * _hits(gold, cuts) / np.maximum(cuts.sizes + gold.sum(), 1)


def _best_micro(
    gold: np.ndarray, probabilities: np.ndarray, cuts: Mapping[int, Cuts], others: Mapping[int, float]
) -> dict[int, float]:
    fixed = [c for c in range(gold.shape[1]) if c not in cuts]
    on = predicted_labels("multilabel", probabilities, threshold=others)[:, fixed].astype(bool)
    tp_fixed, size_fixed = int((on & gold[:, fixed]).sum()), int(on.sum()) + int(gold.sum())
    hits = {c: _hits(gold[:, c], each) for c, each in cuts.items()}
    ratio, chosen = -1.0, dict.fromkeys(cuts, 0.5)
    for _ in range(_TURNS):
        terms = {c: 2 * hits[c] - max(ratio, 0.0) * each.sizes for c, each in cuts.items()}
        found = {c: _best(terms[c], each) for c, each in cuts.items()}
        at = {c: int(np.flatnonzero(each.values == found[c])[0]) for c, each in cuts.items()}
        tp = tp_fixed + sum(int(hits[c][k]) for c, k in at.items())
        size = size_fixed + sum(int(cuts[c].sizes[k]) for c, k in at.items())
        reached = 2 * tp / max(size, 1)
        if reached <= ratio:
            break
        ratio, chosen = reached, found
    return chosen


def _climb(
    gold: np.ndarray,
    probabilities: np.ndarray,
    cuts: Mapping[int, Cuts],
    start: Mapping[int, float],
    others: Mapping[int, float],
) -> dict[int, float]:
    """Thresholds from which no single one can be moved to more rows whose labels are all right."""
    chosen = dict(start)
    on = predicted_labels("multilabel", probabilities, threshold={**others, **chosen}).astype(bool)
    for _ in range(_TURNS):
        before = dict(chosen)
        for c, each in cuts.items():
            rest = np.delete(on == gold, c, axis=1).all(axis=1)
            gains = (np.where(gold[:, c], 1, -1) * rest)[each.order]
            scores = np.append(0, np.cumsum(gains))[each.sizes]
            now = int(gains[on[each.order, c]].sum())
            if scores.max() > now:
                chosen[c] = _best(scores.astype(float), each)
                on[:, c] = probabilities[:, c] >= chosen[c]
        if chosen == before:
            break
    return chosen


def _exact(gold: np.ndarray, probabilities: np.ndarray, thresholds: Mapping[int, float]) -> float:
    return float((predicted_labels("multilabel", probabilities, threshold=thresholds) == gold).all(axis=1).mean())
