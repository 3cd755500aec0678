"""Tuned thresholds against a search through all of them by the metrics themselves."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from jaxlm.metrics.classification import predicted_labels
from jaxlm.metrics.thresholds import best_threshold, best_thresholds, counted, cuts_of, decides

NAMES = ["a", "b", "c"]


def split(problem: str, seed: int, rows: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Skewed labels, probabilities with ties that say something of them."""
    rng = np.random.default_rng(seed)
    if problem == "multilabel":
        gold = (rng.random((rows, 3)) < (0.5, 0.2, 0.1)).astype(np.int64)
        gold[0] = 1
        return gold, np.round(np.clip(rng.normal(0.25 + 0.3 * gold, 0.2), 0, 1), 2)
    count = 2 if problem == "binary" else 3
    gold = rng.choice(count, rows, p=[0.8, 0.2] if count == 2 else [0.6, 0.3, 0.1])
    logits = np.round(rng.normal(0, 1, (rows, count)) + np.eye(count)[gold] - np.arange(count), 1)
    return gold, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def by_counting(metric: str, gold: list[int], predicted: list[int], count: int) -> float:
    """A metric of one label to a row, one row at a time."""
    pairs = list(zip(gold, predicted, strict=True))
    tp = [sum(g == p == c for g, p in pairs) for c in range(count)]
    said, there = ([side.count(c) for c in range(count)] for side in (predicted, gold))
    if metric == "accuracy":
        return sum(tp) / len(pairs)
    if metric == "matthews":
        top = sum(tp) * len(pairs) - sum(a * b for a, b in zip(said, there, strict=True))
        below = [len(pairs) ** 2 - sum(n * n for n in side) for side in (said, there)]
        return top / (below[0] * below[1]) ** 0.5 if all(below) else 0.0
    bottom = {
        "precision": [max(1, n) for n in said],
        "recall": [max(1, n) for n in there],
        "f1": [max(1, a + b) / 2 for a, b in zip(said, there, strict=True)],
    }[metric.replace("/", "_").split("_")[0]]
    each = [a / b for a, b in zip(tp, bottom, strict=True)]
    if not metric.endswith("_macro"):
        return each[1]
    occurs = [c for c in range(count) if said[c] + there[c]]
    return sum(each[c] for c in occurs) / len(occurs)


def every_threshold(p: np.ndarray) -> list[float]:
    values = np.unique(p)
    return [values[0] / 2, *((values[:-1] + values[1:]) / 2), 2.0]


@pytest.mark.parametrize("problem", ["binary", "multiclass"])
@pytest.mark.parametrize(
    "metric", ["accuracy", "f1_macro", "recall_macro", "precision_macro", "matthews", "f1/b", "f1"]
)
@pytest.mark.parametrize("label", [0, 1])
def test_one_label_against_the_rest(problem, metric, label):
    if metric == "f1" and problem == "multiclass":
        assert decides(problem, metric, NAMES) is None
        return
    for seed in range(6):
        gold, p = split(problem, seed)
        names = NAMES[: p.shape[1]]

        def score(threshold, gold=gold, p=p):
            predicted = predicted_labels(problem, p, threshold={label: threshold}).tolist()
            return by_counting(metric, gold.tolist(), predicted, p.shape[1])

        found = best_threshold(gold, p, label, counted(metric, names))
        assert score(found) == pytest.approx(max(map(score, every_threshold(p[:, label]))), abs=1e-12), seed


@pytest.mark.parametrize("metric", ["f1_macro", "f1_micro"])
@pytest.mark.parametrize("tuned", [(0, 1, 2), (0, 2)])
def test_several_labels_together(metric, tuned):
    for seed in range(3):
        gold, p = split("multilabel", seed, 7)
        others = {1: 0.3} if 1 not in tuned else {}

        def score(thresholds, gold=gold, p=p):
            on = predicted_labels("multilabel", p, threshold=thresholds)
            tp, bottom = (on * gold).sum(0), (on + gold).sum(0)
            if metric == "f1_micro":
                return 2 * tp.sum() / bottom.sum()
            return (2 * tp / bottom).mean()

        found = best_thresholds(gold, p, tuned, others, metric)
        assert set(found) == set(tuned)
        choices = product(*(every_threshold(p[:, c]) if c in tuned else [others[c]] for c in range(3)))
        best = max(score(dict(enumerate(values))) for values in choices)
        assert score({**others, **found}) == pytest.approx(best, abs=1e-12), seed


def test_whole_label_sets_that_no_single_threshold_makes_better():
    for seed in range(6):
        gold, p = split("multilabel", seed)

        def score(thresholds, gold=gold, p=p):
            return (predicted_labels("multilabel", p, threshold=thresholds) == gold).all(1).mean()

        found = best_thresholds(gold, p, (0, 1, 2), {}, "accuracy")
        reached = score(found)
        assert reached >= max(score({}), score(best_thresholds(gold, p, (0, 1, 2), {}, "f1_micro")))
        assert all(score({**found, c: t}) <= reached for c in range(3) for t in every_threshold(p[:, c]))


def test_cuts_decide_as_they_say():
    p = np.asarray([0.5, 0.5, np.nextafter(0.5, 1), 1.0, 0.0])
    cuts = cuts_of(p)
    assert cuts.sizes.tolist() == [0, 1, 2, 4, 5]
    assert [(p >= value).sum() for value in cuts.values] == [0, 1, 2, 4, 5]


def test_a_label_without_a_row_keeps_its_threshold():
    gold, p = split("multilabel", 0)
    gold[:, 1] = 0
    for metric in ("f1_macro", "f1_micro", "accuracy"):
        assert set(best_thresholds(gold, p, (0, 1, 2), {}, metric)) == {0, 2}


def test_what_thresholds_are_chosen_by():
    assert decides("binary", "loss", NAMES) == decides("multilabel", "roc_auc", NAMES) == "f1_macro"
    assert decides("binary", "accuracy", NAMES) == "accuracy" and decides("multilabel", "f1/b", NAMES) == "f1/b"
    for problem, metric in (("binary", "recall"), ("multilabel", "recall_macro"), ("multiclass", "precision/a")):
        assert decides(problem, metric, NAMES) is None
