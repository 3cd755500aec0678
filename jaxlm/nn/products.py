"""Products of activations and weights, with operands of the activations' dtype or rounded to bfloat16."""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint


def product(x: jax.Array, kernel: jax.Array, contract: int, *, flatten: bool, half: bool) -> jax.Array:
    """Returns [..., *inputs] times [*inputs, *outputs], in the dtype of x.

    Args:
      contract: how many axes are inputs.
      flatten: multiply matrices of two axes: of arrays of more, XLA's CPU compiler transposes copies for the gradients'
        products.
      half: as `half_product`; takes effect with `flatten` alone.
    """
    if not flatten:
        dims = (tuple(range(x.ndim - contract, x.ndim)), tuple(range(contract)))
        return jax.lax.dot_general(x, kernel, (dims, ((), ())))
    inputs = math.prod(kernel.shape[:contract])
    left, right = x.reshape(-1, inputs), kernel.reshape(inputs, -1)
    y = half_product(left, right).astype(x.dtype) if half else left @ right
    return y.reshape(*x.shape[: x.ndim - contract], *kernel.shape[contract:])


@jax.custom_vjp
def half_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the float32 product of two matrices whose entries are rounded to bfloat16, and added up in float32.

    So are the products of its gradients. A CPU with instructions for bfloat16 (AMX, AVX-512) computes it in about half
    the time of float32, but XLA has that kernel only for matrices laid out row by row with float32 results: transposed
    operands are copied into that order first.

    Args:
      x: [N, D], float32 or bfloat16.
      kernel: [D, E], likewise.
    """
    return _multiply(_half(x), _half(kernel))


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    low, weights = _half(x), _half(kernel)
    dtypes = jnp.zeros((0,), x.dtype), jnp.zeros((0,), kernel.dtype)
    return _multiply(low, weights), (low, weights, *dtypes)


def _backward(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, weights, of_x, of_kernel = kept
    gradient = _half(gradient)
    d_x = _multiply(gradient, _row_major(weights.T))
    d_kernel = _multiply(_row_major(low.T), gradient)
    return d_x.astype(of_x.dtype), d_kernel.astype(of_kernel.dtype)


half_product.defvjp(_forward, _backward)


def _half(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


_multiply = partial(jnp.matmul, preferred_element_type=jnp.float32)


def _row_major(x: jax.Array) -> jax.Array:
    """Keeps the compiler from folding a transposition into the product."""
    return jax.lax.optimization_barrier(with_layout_constraint(x, Layout(major_to_minor=(0, 1))))
