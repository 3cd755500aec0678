"""Keeps a running average of the parameters in the optimizer's state."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class AverageState(NamedTuple):
    """The state of `averaged`; saved, split and offloaded as any optimizer's."""

    count: Any
    """int32 [], steps done."""
    mean: Any
    """Tree like the parameters; zeros before the first step."""
    inner: Any
    """The state of the optimizer."""


def averaged(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformation:
    """Returns an optimizer whose state also holds the exponential moving average of the parameters after each step:

        mean_t = sum_{i=1..t} (1 - d) d^(t-i) p_i / (1 - d^t)

    (Polyak & Juditsky, 1992; the division, as in Adam, spares a short run the parameters it began with). Updates are
    not changed.

    Args:
      decay: d, in (0, 1).
    """

    def init(params: Any) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params), optimizer.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AverageState]:
        updates, inner = optimizer.update(updates, state.inner, params)
        count = jnp.asarray(optax.safe_increment(state.count))
        weight = (1.0 - decay) / -jnp.expm1(count.astype(jnp.float32) * math.log(decay))
        weight = jnp.where(count == 1, 1.0, weight)  # unrounded, so that what is held still is its own average
        new = optax.apply_updates(params, updates)
        mean = jax.tree.map(lambda m, p: m + weight.astype(m.dtype) * (p - m), state.mean, new)
        return updates, AverageState(count, mean, inner)

    return optax.GradientTransformation(init, update)


def average_of(state: Any) -> Any:
    """Returns the average in the state of an `averaged` optimizer; None of any other."""
    return state.mean if isinstance(state, AverageState) else None
