"""The fast gradient method on the token embeddings (Miyato et al., 2017, arXiv:1605.07725): a step learns its batch as
it is, and again with the embeddings moved to where the loss is worst."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.objectives import Batch
from jaxlm.training.gradients import Gradients


def fast_gradient(gradients: Gradients, epsilon: float) -> Gradients:
    """Returns gradients of (L(E) + L(E + epsilon g / |g|)) / 2, E the token table and g the gradient of L by it.

    The norm is that of the whole table over the whole batch, all micro-batches together; g is taken as constant. The
    second pass draws dropout masks of its own.

    Args:
      gradients: those of L; the trained parameters hold the table as `trunk/tokens`.
    """

    def both(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        grads, loss = gradients(params, frozen, batch, key)
        by_table = grads["trunk"]["tokens"]
        norm = jnp.sqrt(jnp.square(by_table.astype(jnp.float32)).sum())
        scale = epsilon / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny)
        table = params["trunk"]["tokens"] + (scale * by_table).astype(by_table.dtype)
        moved = {**params, "trunk": {**params["trunk"], "tokens": table}}
        others, worst = gradients(moved, frozen, batch, jax.random.fold_in(key, 1))
        return jax.tree.map(lambda g, h: (g + h) / 2, grads, others), (loss + worst) / 2

    return both
