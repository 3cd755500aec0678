"""Scores of sentence vectors against independent implementations, ties and several right answers included."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from jaxlm.metrics.embeddings import correlations, cosine_rows, first_rank, normalized, retrieval_scores


def by_all_orders(similarities: np.ndarray, relevant: list[int]) -> dict[str, float]:
    """The definitions, averaged over every order of the documents that agrees with the similarities."""
    sums, orders = dict.fromkeys(("ndcg_at_10", "recall_at_1", "recall_at_10", "mrr"), 0.0), 0
    values = sorted(set(similarities.tolist()), reverse=True)
    tied = [[i for i, s in enumerate(similarities) if s == value] for value in values]
    for parts in itertools.product(*(itertools.permutations(group) for group in tied)):
        order = [i for part in parts for i in part]
        hit = [i in relevant for i in order]
        ideal = sum(1 / math.log2(2 + k) for k in range(min(10, len(relevant))))
        sums["ndcg_at_10"] += sum(h / math.log2(2 + k) for k, h in enumerate(hit[:10])) / ideal
        sums["recall_at_1"] += hit[0] / len(relevant)
        sums["recall_at_10"] += sum(hit[:10]) / len(relevant)
        sums["mrr"] += 1 / (1 + hit.index(True))
        orders += 1
    return {name: value / orders for name, value in sums.items()}


def test_retrieval_on_random_cases_with_ties():
    rng = np.random.default_rng(0)
    for case in range(300):
        documents = int(rng.integers(1, 6))
        levels = int(rng.integers(1, 5))
        similarities = rng.integers(0, levels, documents).astype(np.float32)
        relevant = rng.permutation(documents)[: int(rng.integers(1, documents + 1))].tolist()
        found = retrieval_scores([similarities], [relevant])
        assert found == pytest.approx(by_all_orders(similarities, relevant), abs=1e-12), case


def test_ranks_beyond_ten_against_sklearn():
    rng = np.random.default_rng(1)
    for case in range(300):
        documents = int(rng.integers(11, 60))
        similarities = rng.integers(0, rng.integers(2, 80), documents).astype(np.float64)
        relevant = rng.permutation(documents)[: int(rng.integers(1, 20))].tolist()
        gold = np.isin(np.arange(documents), relevant).astype(float)
        found = retrieval_scores([similarities], [relevant])
        expected = ndcg_score([gold], [similarities], k=10)  # averages over ties, too
        assert found["ndcg_at_10"] == pytest.approx(expected, abs=1e-9), case
        if len(set(similarities)) == documents:  # no ties: read off the order
            order = np.argsort(-similarities)
            assert found["recall_at_10"] == pytest.approx(gold[order[:10]].sum() / len(relevant))
            assert found["mrr"] == pytest.approx(1 / (1 + np.flatnonzero(gold[order])[0]))


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """The rank of each value, from 1; of equal ones, their mean."""
    return np.asarray([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


def test_correlations_on_random_cases_with_ties():
    rng = np.random.default_rng(2)
    for case in range(300):
        size = int(rng.integers(2, 40))
        gold = rng.integers(0, rng.integers(1, 6), size) / 2
        cosines = np.round(rng.uniform(-1, 1, size), int(rng.integers(0, 4)))
        found = correlations(cosines, gold)
        if np.ptp(gold) == 0 or np.ptp(cosines) == 0:
            assert found == {}, case
            continue
        for name, x, y in (
            ("spearman", mean_ranks(cosines), mean_ranks(gold)),
            ("pearson", cosines, gold),
        ):
            x, y = x - x.mean(), y - y.mean()
            assert found[name] == pytest.approx((x @ y) / math.sqrt((x @ x) * (y @ y)), abs=1e-9), case


def test_equal_vectors_score_as_chance_does():
    same = [np.zeros(40)] * 3
    assert retrieval_scores(same, [[0], [1], [39]])["recall_at_10"] == pytest.approx(10 / 40)
    assert first_rank(np.asarray([0.5, 0.5, 0.2, 0.9]), [0]) == 3


def test_cosines_in_blocks(monkeypatch):
    rng = np.random.default_rng(3)
    queries, documents = rng.normal(size=(7, 5)), np.vstack([rng.normal(size=(6, 5)), np.zeros(5)])
    whole = np.stack(list(cosine_rows(queries, documents)))
    monkeypatch.setattr("jaxlm.metrics.embeddings._CELLS", 15)
    np.testing.assert_allclose(np.stack(list(cosine_rows(queries, documents))), whole, atol=1e-6)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(documents[:6], axis=1)
    np.testing.assert_allclose(whole[:, :6], queries @ documents[:6].T / lengths, atol=1e-6)
    assert (whole[:, 6] == 0).all() and (normalized(np.zeros((1, 3))) == 0).all()
    assert retrieval_scores([], []) == {}
