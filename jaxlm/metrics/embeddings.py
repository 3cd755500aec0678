"""Scores of sentence vectors: rank correlation of scored pairs, and retrieval of documents by queries.

Documents that a query finds equally similar stand in no order: each score is its mean over all their orders, so that
vectors that are all equal score as chance does.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

RETRIEVAL = ("ndcg_at_10", "recall_at_1", "recall_at_10", "mrr")
"""Names of `retrieval_scores`."""
_CELLS = 2**24
"""Similarities that exist at once: 64 MiB of float32."""


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Returns float32 [..., D] vectors of length 1; those of length 0 as they are."""
    vectors = np.asarray(vectors, np.float32)
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12)


def correlations(cosines: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Returns `spearman` (mean ranks for ties) and `pearson`; neither is defined where a side does not vary.

    Args:
      cosines, gold: float [N].
    """
    cosines, gold = np.asarray(cosines, np.float64), np.asarray(gold, np.float64)
    if len(gold) < 2 or not np.ptp(gold) > 0 or not np.ptp(cosines) > 0:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on nearly constant input, and on p-values, which are not used
        found: Mapping[str, Any] = {
            "spearman": stats.spearmanr(cosines, gold)[0],
            "pearson": stats.pearsonr(cosines, gold)[0],
        }
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def cosine_rows(queries: np.ndarray, documents: np.ndarray) -> Iterator[np.ndarray]:
    """Yields float32 [N] for each query: its cosine with every document, computed in blocks of queries.

    Args:
      queries: float [Q, D]. documents: float [N, D].
    """
    queries, documents = normalized(queries), normalized(documents)
    block = max(1, _CELLS // max(1, len(documents)))
    for start in range(0, len(queries), block):
        yield from queries[start : start + block] @ documents.T


def retrieval_scores(similarities: Iterable[np.ndarray], relevant: Sequence[Sequence[int]]) -> dict[str, float]:
    """Ranks the documents of each query.

    recall_at_k = relevant documents among the first k / relevant documents; mrr = 1 / rank of the first relevant one;
    ndcg_at_10 with gain 1 of relevant documents and a discount of log2(rank + 1) (Järvelin and Kekäläinen, 2002);
    each a mean over queries.

    Args:
      similarities: of each query, float [N], how similar each document is.
      relevant: indices of each query's relevant documents, at least one, each once.
    Returns:
      The scores of `RETRIEVAL`; {} without queries.
    """
    found = [_scores(row, np.asarray(wanted, np.int64)) for row, wanted in zip(similarities, relevant, strict=True)]
    return dict(zip(RETRIEVAL, np.mean(found, axis=0).tolist(), strict=True)) if found else {}


def first_rank(similarities: np.ndarray, relevant: Sequence[int]) -> int:
    """Returns the rank, from 1, of the best relevant document, ties counted against it.

    Args:
      similarities: float [N], of a query and each document.
    """
    best = similarities[list(relevant)].max()
    others = np.delete(similarities, list(relevant))
    return 1 + int((others >= best).sum())


def _scores(similarities: np.ndarray, relevant: np.ndarray) -> tuple[float, float, float, float]:
    """The scores of one query, in the order of `RETRIEVAL`."""
    values = np.unique(similarities[relevant])[::-1]
    dcg = recall_1 = recall_10 = 0.0
    reciprocal = None
    for value in values:
        before = int((similarities > value).sum())
        tied = int((similarities == value).sum())
        hits = int((similarities[relevant] == value).sum())
        dcg += hits * _discounts(before, before + tied, 10).sum() / tied
        recall_1 += hits * min(max(1 - before, 0), tied) / tied
        recall_10 += hits * min(max(10 - before, 0), tied) / tied
        if reciprocal is None:
            reciprocal = _mean_reciprocal(before, tied, hits)
    ideal = _discounts(0, len(relevant), 10).sum()
    assert reciprocal is not None
    return dcg / ideal, recall_1 / len(relevant), recall_10 / len(relevant), reciprocal


def _discounts(start: int, stop: int, most: int) -> np.ndarray:
    """1 / log2(rank + 1) of the ranks start + 1 ... stop that are at most `most`."""
    return 1 / np.log2(np.arange(start, min(stop, most)) + 2)


def _mean_reciprocal(before: int, tied: int, hits: int) -> float:
    """The mean of 1 / rank of the first of `hits` documents among `tied` in random order, after `before` others."""
    if tied == hits:
        return 1 / (before + 1)
    mean, none_yet = 0.0, 1.0  # none_yet: that no hit stands earlier
    for place in range(tied - hits + 1):
        here = hits / (tied - place)
        mean += none_yet * here / (before + place + 1)
        none_yet *= 1 - here
    return mean
