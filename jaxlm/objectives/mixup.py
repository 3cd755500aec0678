"""Mixup of examples in front of the head (Zhang et al., 2018, "mixup: Beyond Empirical Risk Minimization",
arXiv:1710.09412; of sentence states: Guo, Mao & Zhang, 2019, arXiv:1905.08941): the network learns that what lies
between two examples has labels between theirs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.fields import MIX_PARTNER, MIX_SHARE
from jaxlm.objectives import Apply, Batch, Loss


def mixup(apply: Apply, loss: Loss, alpha: float) -> tuple[Apply, Loss]:
    """Returns apply and loss of mixed examples: the state of example i becomes s x_i + (1 - s) x_j before the head, and
    its loss s l(y_i) + (1 - s) l(y_j), s drawn from Beta(alpha, alpha) for each example.

    Its partner j is another example of the micro-batch, drawn at random; each is the partner of one. An example by
    itself is its own.

    Args:
      apply: of a model that mixes states where the batch says so (`models.base.Network`).
      loss: of outputs [B, S, ...] by `labels` and `weights` [B, S].
    """

    def mixed(params: Any, frozen: Any, batch: Batch, key: Any) -> tuple[Any, jax.Array, jax.Array]:
        draw, rest = jax.random.split(key)
        order, shares = jax.random.split(draw)
        partner = partners(batch["weights"], order)
        share = jax.random.beta(shares, alpha, alpha, partner.shape, jnp.float32)
        outputs = apply(params, frozen, {**batch, MIX_PARTNER: partner, MIX_SHARE: share}, rest)
        return outputs, partner, share

    def total(made: tuple[Any, jax.Array, jax.Array], batch: Batch) -> tuple[jax.Array, jax.Array]:
        outputs, partner, share = made
        labels, weights = batch["labels"], batch["weights"]
        others = labels.reshape(-1, *labels.shape[2:])[partner.reshape(-1)].reshape(labels.shape)
        one, weight = loss(outputs, {**batch, "weights": weights * share})
        two, rest = loss(outputs, {**batch, "labels": others, "weights": weights * (1.0 - share)})
        return one + two, weight + rest

    return mixed, total


def partners(weights: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the place of each example's partner among all B * S slots: the next in a random order of the examples.

    Args:
      weights: float32 [B, S], 0 for an empty slot, which is its own partner.
    Returns:
      int32 [B, S].
    """
    held = weights.reshape(-1) > 0
    draws = jnp.where(held, jax.random.uniform(key, held.shape), 2.0)
    order = jnp.argsort(draws).astype(jnp.int32)  # the examples, and then the empty slots
    places = jnp.arange(held.size, dtype=jnp.int32)
    following = jnp.where(places + 1 < held.sum(dtype=jnp.int32), places + 1, 0)
    found = jnp.zeros_like(order).at[order].set(order[following])
    return jnp.where(held, found, places).reshape(weights.shape)
