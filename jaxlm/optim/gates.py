"""Holds parameters still: layers of a stack that is trained in part, and layers whose turn has not come yet."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax


class UnfreezingState(NamedTuple):
    """Attributes:
    count: int32 [], steps done.
    inner: the state of the optimizer.
    """

    count: Any
    inner: Any


def along(values: Any, x: jax.Array) -> jax.Array:
    """Gives an array [L], of a number for each layer of x, or [] trailing axes, so that it broadcasts against x."""
    values = jnp.asarray(values)
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def hold(optimizer: optax.GradientTransformation, trained: Any) -> optax.GradientTransformation:
    """Returns an optimizer that sees no gradient of frozen layers, and leaves them as they are, bit by bit.

    Args:
      trained: tree like the parameters of bool [] or, of stacked layers, [L].
    """
    if all(np.all(mask) for mask in jax.tree.leaves(trained)):
        return optimizer

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.tree.map(lambda g, m: _where(m, g, 0.0), updates, trained), state, params)
        return jax.tree.map(lambda u, m: _where(m, u, -0.0), updates, trained), state

    return optax.GradientTransformation(optimizer.init, update)


def unfreeze(optimizer: optax.GradientTransformation, heights: Any, every: int) -> optax.GradientTransformation:
    """Returns an optimizer that changes a parameter of height h from step h * `every` on (Howard & Ruder, 2018,
    arXiv:1801.06146): the head at once, then the top layer, then one more each `every` steps, the embeddings last.

    The gradients of layers that wait go into the optimizer's moments and into the norm that is clipped, so that a layer
    starts with moments of its own and no larger step than others.

    Args:
      heights: tree like the parameters of int [] or [L] (`jaxlm.models.places.heights`).
    """

    def init(params: Any) -> UnfreezingState:
        return UnfreezingState(jnp.zeros((), jnp.int32), optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, UnfreezingState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        opened = state.count // every
        held = jax.tree.map(
            lambda u, height: _where(jnp.asarray(height, jnp.int32) <= opened, u, -0.0), updates, heights
        )
        return held, UnfreezingState(jnp.asarray(optax.safe_increment(state.count)), inner)

    return optax.GradientTransformation(init, update)


def _where(mask: Any, x: jax.Array, other: float) -> jax.Array:
    """x where the mask is true; a negative zero, added to a parameter, keeps the sign of a zero."""
    if isinstance(mask, np.ndarray) and mask.all():
        return x
    return jnp.where(along(mask, x), x, jnp.asarray(other, x.dtype))
