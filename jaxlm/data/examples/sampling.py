"""How often the rows of each class come in an epoch: `data.sampling`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from jaxlm.data.config import Sampling
from jaxlm.data.examples.order import Order, epoch_order


def sampled_counts(counts: Sequence[int] | np.ndarray, sampling: Sampling) -> np.ndarray:
    """Returns how many rows of each class an epoch holds, int64 [C].

    With n rows of a class and m of the largest, `under` takes as many of each class as the smallest has; the others
    repeat rows, and drop none: m (n / m)^(1 / T) rows of each, T being 2 for `sqrt` and infinite for `balanced`, so
    that a class is drawn with probability n^(1 / T) / sum n^(1 / T): Arivazhagan et al., "Massively Multilingual Neural
    Machine Translation in the Wild" (2019), section 4.2.

    Args:
      counts: rows of each class; a class without any stays so.
    """
    n = np.asarray(counts, np.int64)
    there = n > 0
    if sampling == "natural" or not there.any():
        return n
    if sampling == "under":
        return np.where(there, n[there].min(), 0)
    exponent = {"balanced": 0.0, "sqrt": 0.5}[sampling] if isinstance(sampling, str) else 1.0 / sampling.temperature
    most = n.max()
    return np.where(there, np.rint(most * (n / most) ** exponent), 0).astype(np.int64)


def make_draw(classes: np.ndarray, sampling: Sampling, seed: int) -> Order:
    """Returns the epochs of rows that have these classes; the last two that were asked for are remembered.

    The rows of a class come equally often in an epoch, give or take one time; which ones come once more is drawn from
    (seed, epoch), and so is the order.

    Args:
      classes: int [rows].
    """
    members = [np.flatnonzero(classes == c) for c in range(int(classes.max()) + 1)]
    targets = sampled_counts([len(rows) for rows in members], sampling)

    def draw(epoch: int) -> np.ndarray:
        drawn = []
        for c, (rows, target) in enumerate(zip(members, targets.tolist(), strict=True)):
            if not len(rows):
                continue
            times, rest = divmod(target, len(rows))
            drawn += [rows] * times
            drawn.append(np.random.default_rng([seed, epoch, 2, c]).permutation(rows)[:rest])
        rows = np.concatenate(drawn)
        return rows[epoch_order(len(rows), seed, epoch)]

    return functools.lru_cache(maxsize=2)(draw)
