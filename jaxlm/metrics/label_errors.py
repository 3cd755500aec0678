"""Likely label errors, by confident learning: rows whose given label the out-of-fold probabilities dispute."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Dispute(NamedTuple):
    """A row whose label is likely another.

    Attributes:
      row: its place in the arrays.
      given: id of the label that it has.
      suggested: id of the label that the model is confident of.
      margin: probability of `suggested` less that of `given`.
    """

    row: int
    given: int
    suggested: int
    margin: float


def disputed_labels(probabilities: np.ndarray, labels: np.ndarray) -> list[Dispute]:
    """Returns the rows that confident learning counts off the diagonal, the largest margin first.

    The threshold of a label is the mean probability of it among the rows that have it:
    t_j = mean of p_j(x) over {x : label(x) = j}. A row is confidently of label j where p_j(x) >= t_j; of several such
    labels, of the likeliest. It is disputed where that label is not its own. Northcutt, Jiang and Chuang, "Confident
    Learning: Estimating Uncertainty in Dataset Labels" (2021), section 3.1. A label's own mean makes up for a model
    that is surer of one label than of another, as with labels of different frequency.

    Args:
      probabilities: float [N, C], of a model that has not seen the row.
      labels: int [N], as given.
    """
    labels = np.asarray(labels, np.int64)
    if len(labels) == 0:
        return []
    probabilities = np.asarray(probabilities, np.float64)
    num_rows, num_labels = probabilities.shape
    counts_C = np.bincount(labels, minlength=num_labels)
    own_N = probabilities[np.arange(num_rows), labels]
    threshold_C = np.bincount(labels, own_N, minlength=num_labels) / np.maximum(counts_C, 1)
    threshold_C[counts_C == 0] = np.inf  # a label that no row has is suggested to none
    confident_NC = np.where(probabilities >= threshold_C - 1e-12, probabilities, -1.0)
    best_N = confident_NC.argmax(axis=1)
    disputed = np.flatnonzero((confident_NC.max(axis=1) >= 0) & (best_N != labels))
    margin_N = probabilities[np.arange(num_rows), best_N] - own_N
    order = disputed[np.argsort(-margin_N[disputed], kind="stable")]
    return [Dispute(int(i), int(labels[i]), int(best_N[i]), float(margin_N[i])) for i in order]
