"""Moments of the gradient that are stored in bfloat16 and computed in float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

_SEED = 5_820_917


def bfloat16_moments(rule: optax.GradientTransformation) -> optax.GradientTransformation:
    """Stores the fields `mu` and `nu` of a rule's state in bfloat16.

    `mu` is rounded to the nearest. `nu` is rounded up or down at random, so that it is right on average: with b2 =
    0.999 a step changes it by at most a thousandth when it falls, less than the 2^-8 between neighboring numbers, and
    rounding to the nearest would keep it from ever falling. The draws follow from the step alone: a resumed run makes
    the same ones.

    Args:
      rule: its state has the fields `count` and `mu`, and may have `nu`, as optax's Adam and Muon do.
    """

    def init(params: Any) -> Any:
        return _store(rule.init(params), None)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = {name: jax.tree.map(lambda x: x.astype(jnp.float32), value) for name, value in _moments(state).items()}
        updates, state = rule.update(updates, state._replace(**wide), params)
        return updates, _store(state, jax.random.fold_in(jax.random.key(_SEED), state.count))

    return optax.GradientTransformation(init, update)


def _moments(state: Any) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("mu", "nu") if name in state._fields}


def _store(state: Any, key: jax.Array | None) -> Any:
    stored = {name: jax.tree.map(lambda x: x.astype(jnp.bfloat16), value) for name, value in _moments(state).items()}
    if "nu" in stored and key is not None:
        leaves, structure = jax.tree.flatten(state.nu)
        rounded = [round_stochastic(leaf, jax.random.fold_in(key, i)) for i, leaf in enumerate(leaves)]
        stored["nu"] = jax.tree.unflatten(structure, rounded)
    return state._replace(**stored)


def round_stochastic(x: jax.Array, key: jax.Array) -> jax.Array:
    """Rounds float32 to one of the two neighboring bfloat16 numbers, to each by its nearness: right on average."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    high = jax.lax.shift_right_logical(bits, jnp.full_like(bits, 16)).astype(jnp.uint16)
    return jax.lax.bitcast_convert_type(high, jnp.bfloat16)
