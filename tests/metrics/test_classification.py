"""Metrics against values worked out by hand and definitions written out pair by pair."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from jaxlm.errors import RunFailure
from jaxlm.metrics.classification import (
    PRIMARY,
    classification_metrics,
    confusion_matrix,
    higher_is_better,
    metric_names,
    predicted_labels,
)


def two_columns(p1):
    p1 = np.asarray(p1, np.float64)
    return np.stack([1 - p1, p1], axis=1)


def pairwise_auc(is_positive, score):
    """Probability that a random positive is ranked above a random negative, ties counting one half."""
    ranked = list(zip(score, is_positive, strict=True))
    pairs = [(p, n) for (p, a), (n, b) in itertools.product(ranked, repeat=2) if a and not b]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def test_binary_by_hand():
    # gold 1: p = .9 .8 .3, gold 0: p = .6 .1 .2 .3 -> TP 2, FN 1, FP 1, TN 3
    gold = np.array([1, 1, 1, 0, 0, 0, 0])
    m = classification_metrics("binary", gold, two_columns([0.9, 0.8, 0.3, 0.6, 0.1, 0.2, 0.3]), ["ham", "spam"])
    assert m["accuracy"] == pytest.approx(5 / 7)
    assert m["precision"] == pytest.approx(2 / 3) == m["precision/spam"]
    assert m["recall"] == pytest.approx(2 / 3) == m["recall/spam"]
    assert m["f1"] == pytest.approx(2 / 3) == m["f1/spam"]
    assert m["f1/ham"] == pytest.approx(3 / 4)
    assert m["f1_macro"] == pytest.approx((2 / 3 + 3 / 4) / 2)
    assert m["f1_micro"] == pytest.approx(5 / 7)
    assert m["matthews"] == pytest.approx((2 * 3 - 1 * 1) / math.sqrt(3 * 3 * 4 * 4))
    # of 12 pairs: .9 and .8 beat all four; .3 beats .1 and .2, ties .3, loses to .6
    assert m["roc_auc"] == pytest.approx((4 + 4 + 2.5) / 12)


def test_binary_label_id_1_is_the_positive_one_whatever_it_is_called():
    gold = np.array([1, 0, 0, 0])
    m = classification_metrics("binary", gold, two_columns([0.9, 0.8, 0.1, 0.1]), ["positive", "negative"])
    assert (m["precision"], m["recall"]) == (0.5, 1.0)


def test_multiclass_by_hand():
    gold = np.array([0, 0, 0, 1, 1, 2])
    predicted = np.array([0, 0, 1, 1, 2, 2])
    scores = np.full((6, 3), 0.2)
    scores[np.arange(6), predicted] = 0.6
    m = classification_metrics("multiclass", gold, scores, ["a", "b", "c"])
    assert m["accuracy"] == pytest.approx(4 / 6) == m["precision_micro"] == m["recall_micro"] == m["f1_micro"]
    assert (m["precision/a"], m["recall/a"], m["f1/a"]) == pytest.approx((1, 2 / 3, 4 / 5))
    assert (m["precision/b"], m["recall/b"], m["f1/b"]) == pytest.approx((1 / 2, 1 / 2, 1 / 2))
    assert (m["precision/c"], m["recall/c"], m["f1/c"]) == pytest.approx((1 / 2, 1, 2 / 3))
    assert m["precision_macro"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert m["recall_macro"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert m["f1_macro"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    # R_K = (c s - sum p_k t_k) / sqrt((s^2 - sum p_k^2) (s^2 - sum t_k^2)), c = 4, s = 6, t = 3 2 1, p = 2 2 2
    assert m["matthews"] == pytest.approx((4 * 6 - 12) / math.sqrt((36 - 12) * (36 - 14)))
    auc = np.mean([pairwise_auc(gold == c, scores[:, c]) for c in range(3)])
    assert m["roc_auc"] == pytest.approx(auc)


def test_a_class_that_does_not_occur_is_left_out_of_the_macro_average():
    scores = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.7, 0.2, 0.1]])
    m = classification_metrics("multiclass", np.array([0, 1, 1]), scores, ["a", "b", "never"])
    assert not any(name.endswith("/never") for name in m)
    assert m["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    # "never" has no positive, so the average is over a and b
    auc = [pairwise_auc([1, 0, 0], scores[:, 0]), pairwise_auc([0, 1, 1], scores[:, 1])]
    assert m["roc_auc"] == pytest.approx(np.mean(auc))


def test_a_class_never_predicted_counts_as_zero():
    scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.8, 0.2]])
    m = classification_metrics("binary", np.array([0, 1, 0]), scores, ["n", "y"])
    assert (m["precision"], m["recall"], m["f1"], m["matthews"]) == (0, 0, 0, 0)
    assert m["roc_auc"] == 1


def test_multilabel_by_hand():
    gold = np.array([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]])
    scores = np.array([[0.9, 0.2, 0.4], [0.1, 0.5, 0.0], [0.2, 0.1, 0.3], [0.8, 0.3, 0.6]])
    m = classification_metrics("multilabel", gold, scores, ["x", "y", "z"])
    # predicted at 0.5 and above: {x}, {y}, {}, {x z}
    assert m["accuracy"] == 2 / 4
    assert (m["f1/x"], m["f1/y"], m["f1/z"]) == pytest.approx((1, 2 / 3, 0))
    assert m["f1_macro"] == pytest.approx((1 + 2 / 3) / 3)
    assert (m["precision_micro"], m["recall_micro"], m["f1_micro"]) == pytest.approx((3 / 4, 3 / 5, 6 / 9))
    assert m["roc_auc"] == pytest.approx(np.mean([pairwise_auc(gold[:, c], scores[:, c]) for c in range(3)]))
    assert "matthews" not in m
    lower = classification_metrics("multilabel", gold, scores, ["x", "y", "z"], threshold=0.25)
    assert lower["recall_micro"] == 1


def test_multilabel_auc_skips_labels_with_one_side_only():
    gold = np.array([[1, 0, 1], [1, 0, 0]])
    scores = np.array([[0.9, 0.1, 0.3], [0.9, 0.1, 0.7]])
    m = classification_metrics("multilabel", gold, scores, ["all", "none", "some"])
    assert m["roc_auc"] == 0
    assert "f1/none" not in m


def test_regression_by_hand():
    gold, predicted = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 8.0])
    m = classification_metrics("regression", gold, predicted, [])
    assert m["mse"] == pytest.approx((0 + 1 + 1 + 16) / 4)
    assert m["mae"] == pytest.approx((0 + 1 + 1 + 4) / 4)
    assert m["r2"] == pytest.approx(1 - 18 / 5)
    # deviations: -1.5 -.5 .5 1.5 and -2.5 -.5 -1.5 4.5
    assert m["pearson"] == pytest.approx((3.75 + 0.25 - 0.75 + 6.75) / math.sqrt(5 * 29))
    # ranks 1 2 3 4 and 1 3 2 4: 1 - 6 * 2 / (4 * 15)
    assert m["spearman"] == pytest.approx(0.8)


def test_spearman_gives_ties_their_mean_rank():
    m = classification_metrics("regression", np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]), [])
    # ranks 1 2.5 2.5 4 and 1 2 3 4: 4.5 / sqrt(4.5 * 5)
    assert m["spearman"] == pytest.approx(math.sqrt(4.5 / 5))


def test_undefined_values_are_left_out_without_a_warning():
    one_class = classification_metrics("binary", np.array([0, 0]), two_columns([0.1, 0.2]), ["n", "y"])
    assert one_class["accuracy"] == 1
    assert not {"f1", "precision", "recall", "matthews", "roc_auc", "f1/y"} & set(one_class)
    constant = classification_metrics("regression", np.array([1.0, 1.0]), np.array([1.0, 2.0]), [])
    assert set(constant) == {"mse", "mae"}
    flat = classification_metrics("regression", np.array([1.0, 2.0]), np.array([1.0, 1.0]), [])
    assert set(flat) == {"mse", "mae", "r2"}
    single = classification_metrics("regression", np.array([1.0]), np.array([3.0]), [])
    assert single == {"mse": 4.0, "mae": 2.0}
    empty_sets = classification_metrics("multilabel", np.zeros((2, 2), int), np.zeros((2, 2)), ["a", "b"])
    assert empty_sets == {"accuracy": 1.0}


@pytest.mark.parametrize("problem", ["binary", "multiclass", "multilabel", "regression"])
def test_names_are_known_in_advance_and_the_primary_is_among_them(problem):
    rng = np.random.default_rng(0)
    count = 2 if problem == "binary" else 4
    names = [] if problem == "regression" else [f"l{i}" for i in range(count)]
    scores = rng.random(50) if problem == "regression" else rng.random((50, count))
    if problem == "multilabel":
        gold = rng.integers(0, 2, (50, count))
    else:
        gold = rng.random(50) if problem == "regression" else rng.integers(0, count, 50)
    m = classification_metrics(problem, gold, scores, names)
    assert tuple(m) == metric_names(problem, names)
    assert PRIMARY[problem] in m
    assert all(type(v) is float and math.isfinite(v) for v in m.values())


def test_float32_scores_are_averaged_in_float64():
    gold = np.zeros(1_000_001, np.float32)
    predicted = np.full(1_000_001, 0.1, np.float32)
    m = classification_metrics("regression", gold, predicted, [])
    assert m["mae"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_direction():
    assert [higher_is_better(n) for n in ("loss", "mse", "mae")] == [False] * 3
    # a label may be called "loss"
    assert all(higher_is_better(n) for n in ("accuracy", "f1", "spearman", "matthews", "r2", "f1/loss"))


def test_confusion_matrix_has_gold_in_rows():
    matrix = confusion_matrix(np.array([0, 0, 2, 2]), np.array([1, 0, 2, 0]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]


def test_decisions():
    assert predicted_labels("multiclass", np.array([[0.4, 0.4, 0.2], [0.1, 0.2, 0.7]])).tolist() == [0, 2]
    assert predicted_labels("multilabel", np.array([[0.5, 0.49]])).tolist() == [[1, 0]]
    assert predicted_labels("multilabel", np.array([[0.5, 0.49]]), threshold=0.6).tolist() == [[0, 0]]
    assert predicted_labels("regression", np.array([1.5])).tolist() == [1.5]


def test_a_diverged_model_is_not_scored():
    scores = two_columns([0.1, np.nan, 0.3])
    with pytest.raises(RunFailure, match=r"1 of 3 examples \(first: example 1\).*learning_rate"):
        classification_metrics("binary", np.array([0, 1, 0]), scores, ["n", "y"])


@pytest.mark.parametrize(
    ("problem", "labels", "scores", "names", "message"),
    [
        ("ranking", [0], [[1.0]], ["a"], "problem"),
        ("multiclass", np.zeros(0, int), np.zeros((0, 2)), ["a", "b"], "no examples"),
        ("multiclass", [0, 1], [[1.0, 0.0]], ["a", "b"], "scores"),
        ("multilabel", [0, 1], [[1.0, 0.0], [1.0, 0.0]], ["a", "b"], "labels"),
        ("multiclass", [0, 2], [[1.0, 0.0], [1.0, 0.0]], ["a", "b"], "from 0 to 1"),
        ("multiclass", [0.0, 1.0], [[1.0, 0.0], [1.0, 0.0]], ["a", "b"], "integer"),
        ("binary", [0], [[1.0, 0.0, 0.0]], ["a", "b", "c"], "two labels"),
    ],
)
def test_misshapen_input_is_refused(problem, labels, scores, names, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(problem, np.asarray(labels), np.asarray(scores), names)
