"""The bias of a dense map: of bfloat16 on a TPU, the matrix units add up its gradient."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxlm.parallel.sharding import Rules, constrain

_SUBLANES = 8
"""Rows of a TPU's tile; of a product with fewer, its compiler makes a sum again. All but one are zeros."""


def add_bias(y: jax.Array, bias: jax.Array, axes: tuple[str, ...], rules: Rules) -> jax.Array:
    """Returns y [..., outputs] plus a float32 bias [1, ..., outputs], in the dtype of y.

    Args:
      axes: logical names of the outputs' axes, as they are gathered.
    """
    if rules.platform == "tpu" and y.dtype == jnp.bfloat16:
        return _add(y, bias, axes, rules)
    return y + bias.astype(y.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _add(y: jax.Array, bias: jax.Array, axes: tuple[str, ...], rules: Rules) -> jax.Array:
    return y + bias.astype(y.dtype)


def _forward(y: jax.Array, bias: jax.Array, axes: tuple[str, ...], rules: Rules) -> tuple[jax.Array, None]:
    return y + bias.astype(y.dtype), None


def _backward(axes: tuple[str, ...], rules: Rules, _: None, d_y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The bias's gradient is the sum of d_y over tokens: a product with a row of ones, added up in float32."""
    summed = tuple(range(d_y.ndim - len(axes)))
    rows = jnp.zeros((_SUBLANES, *(d_y.shape[axis] for axis in summed)), d_y.dtype).at[0].set(1)
    rows = jax.lax.optimization_barrier(rows)  # else the compiler knows what they are
    dims = tuple(1 + axis for axis in summed), summed
    sums = jax.lax.dot_general(rows, d_y, (dims, ((), ())), preferred_element_type=jnp.float32)
    # Added up, since the compiler of v5p fails on a row that is taken from an all-reduce and split.
    d_bias = constrain(sums, (None, *axes), rules).sum(0)
    return d_y, d_bias.reshape((1,) * len(summed) + d_bias.shape)


_add.defvjp(_forward, _backward)
