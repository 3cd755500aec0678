"""The training state: step, parameters, optimizer state and the random key."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.sharding import Rules


class TrainState(NamedTuple):
    """All that a step changes; what a checkpoint holds. Shardings or ShapeDtypeStructs may stand for the arrays."""

    step: Any
    """int32 [], optimizer steps done."""
    params: Any
    opt_state: Any
    key: Any
    """Key that every step's dropout key is folded from."""


def init_state(params: Any, optimizer: optax.GradientTransformation, key: jax.Array, rules: Rules) -> TrainState:
    """Returns the state before the first step; optimizer moments take their parameters' shardings."""
    shardings = state_shardings(params, optimizer, rules)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings and shardings.opt_state)(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, key)
    if shardings is None:
        return state
    return state._replace(step=jax.device_put(state.step, shardings.step), key=jax.device_put(key, shardings.key))


def state_shardings(params: Any, optimizer: optax.GradientTransformation, rules: Rules) -> TrainState | None:
    """Returns the sharding of every leaf of the state, or None without a mesh.

    Args:
      params: arrays or ShapeDtypeStructs that carry their shardings.
    """
    if rules.mesh is None:
        return None
    replicated = NamedSharding(rules.mesh, PartitionSpec())
    param_shardings = jax.tree.map(lambda p: p.sharding, params)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda _, sharding: sharding,
        jax.eval_shape(optimizer.init, params),
        param_shardings,
        transform_non_params=lambda _: replicated,
    )
    return TrainState(replicated, param_shardings, opt_state, replicated)


def abstract_state(params: Any, optimizer: optax.GradientTransformation, key: jax.Array, rules: Rules) -> TrainState:
    """Returns the state as ShapeDtypeStructs with shardings, for restoring and ahead-of-time compilation."""
    shapes = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        shapes,
        jax.eval_shape(optimizer.init, shapes),
        jax.ShapeDtypeStruct(key.shape, key.dtype),
    )
    shardings = state_shardings(params, optimizer, rules)
    if shardings is None:
        return state
    return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), state, shardings)
