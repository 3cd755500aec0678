"""Confident learning against a plain reading of the paper, and on labels of which some were changed on purpose."""

from __future__ import annotations

import numpy as np

from jaxlm.metrics.label_errors import Dispute, disputed_labels


def by_the_paper(probabilities: np.ndarray, labels: np.ndarray) -> set[tuple[int, int, int]]:
    """Equations 1 and 2, a row and a label at a time."""
    classes = range(probabilities.shape[1])
    thresholds = {j: np.mean(probabilities[labels == j, j]) for j in classes if (labels == j).any()}
    found = set()
    for i, given in enumerate(labels.tolist()):
        passed = [j for j in thresholds if probabilities[i, j] >= thresholds[j]]
        if passed and (best := max(passed, key=lambda j: probabilities[i, j])) != given:
            found.add((i, given, best))
    return found


def test_equals_the_paper():
    rng = np.random.default_rng(3)
    for classes in (2, 3, 6):
        probabilities = rng.dirichlet(np.full(classes, 0.7), size=200)
        labels = rng.integers(0, max(classes - 1, 2), size=200)  # of the last label there is no row
        found = disputed_labels(probabilities, labels)
        assert {(d.row, d.given, d.suggested) for d in found} == by_the_paper(probabilities, labels)
        margins = [d.margin for d in found]
        assert margins == sorted(margins, reverse=True) and len(found) > 20


def test_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.85, 0.15]])
    (found,) = disputed_labels(probabilities, np.array([0, 0, 1, 1]))
    assert found == Dispute(3, 1, 0, found.margin) and np.isclose(found.margin, 0.7)  # thresholds 0.8 and 0.475


def test_finds_labels_that_were_changed_also_of_a_rare_class():
    rng = np.random.default_rng(0)
    true = rng.choice(3, size=1000, p=[0.8, 0.15, 0.05])
    logits = rng.normal(size=(1000, 3)) + 3 * np.eye(3)[true] + np.array([2.0, 0.0, -1.0])  # surer of what is frequent
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    changed = rng.random(1000) < 0.05
    given = np.where(changed, (true + 1) % 3, true)
    found = {d.row for d in disputed_labels(probabilities, given)}
    wrong = set(np.flatnonzero(changed).tolist())
    assert len(found & wrong) > 0.8 * len(wrong)
    worst = [d.row for d in disputed_labels(probabilities, given)][: len(wrong) // 2]
    assert len(set(worst) & wrong) > 0.9 * len(worst)


def test_nothing_disputed():
    assert disputed_labels(np.eye(3), np.arange(3)) == []
    assert disputed_labels(np.zeros((0, 3)), np.zeros(0, np.int64)) == []
