"""The order in which an epoch's examples come: drawn at random, and optionally dealt to batches of like size."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

Order = Callable[[int], np.ndarray]
"""Epoch -> int64 [N], examples of which each `batch_size` in turn are a batch: a permutation of all, or what
`data.sampling` draws; N is the same for every epoch."""


def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """int64 [num_examples]: the permutation of one training epoch, a function of (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(num_examples)


def balanced_order(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, order: np.ndarray | None = None
) -> np.ndarray:
    """A permutation whose batches hold nearly equal numbers of tokens, a function of (seed, epoch).

    The epoch's examples are dealt out longest first, in rounds of one example to each batch, the batch with the fewest
    tokens so far taking the longest of its round. So every batch has its share of long and of short examples; which
    ones, and in which order the batches come, is drawn. Examples that fill no batch are those left over by
    `epoch_order`, and come last.

    Args:
        lengths: int [num_examples], tokens of each example.
        order: the epoch's examples as they were drawn; None: `epoch_order`.
    """
    if order is None:
        order = epoch_order(len(lengths), seed, epoch)
    num_batches = len(order) // batch_size
    whole, rest = np.split(order, [num_batches * batch_size])
    by_length = whole[np.argsort(-lengths[whole], kind="stable")]
    batches = np.empty((num_batches, batch_size), np.int64)
    tokens = np.zeros(num_batches, np.int64)
    for k, dealt in enumerate(by_length.reshape(batch_size, num_batches)):
        emptiest_first = np.argsort(tokens, kind="stable")
        batches[emptiest_first, k] = dealt
        tokens[emptiest_first] += lengths[dealt]
    # The first batch has got the longest example of all: without this, every epoch would begin with it.
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(num_batches)
    return np.concatenate([batches[shuffled].reshape(-1), rest])


def make_order(kind: str, lengths: np.ndarray, batch_size: int, seed: int, draw: Order | None = None) -> Order:
    """The order of `data.batch_order`, "random" or "balanced"; the last two epochs asked for are remembered.

    Args:
        draw: gives the examples of an epoch; None: `epoch_order`, every example once.
    """
    drawn = draw or functools.partial(epoch_order, len(lengths), seed)

    def balanced(epoch: int) -> np.ndarray:
        return balanced_order(lengths, batch_size, seed, epoch, drawn(epoch))

    return functools.lru_cache(maxsize=2)({"random": drawn, "balanced": balanced}[kind])
