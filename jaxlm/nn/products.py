"""Products of activations and weights, with operands of the activations' dtype or rounded to bfloat16."""

from __future__ import annotations

import functools
import logging
import math

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jaxlm.parallel.chips import cpu_multiplies_bfloat16

log = logging.getLogger("jaxlm")


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
    d_x = _multiply(gradient, weights.T)
    d_kernel = _multiply(low.T, gradient)
    return d_x.astype(of_x.dtype), d_kernel.astype(of_kernel.dtype)


half_product.defvjp(_forward, _backward)


@jax.custom_vjp
def transposed_half_product(x: jax.Array, table: jax.Array) -> jax.Array:
    """Returns the float32 product of a matrix and a transposed one, as `half_product`.

    Args:
      x: [N, D], float32 or bfloat16.
      table: [V, D], likewise.
    """
    return _multiply(_half(x), _half(table).T)


def _forward_transposed(x: jax.Array, table: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    low, rows = _half(x), _half(table)
    dtypes = jnp.zeros((0,), x.dtype), jnp.zeros((0,), table.dtype)
    return _multiply(low, rows.T), (low, rows, *dtypes)


def _backward_transposed(kept: tuple[jax.Array, ...], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, rows, of_x, of_table = kept
    gradient = _half(gradient)
    d_x = _multiply(gradient, rows)
    d_table = _multiply(low.T, gradient).T  # of the smaller matrices, these are transposed
    return d_x.astype(of_x.dtype), d_table.astype(of_table.dtype)


transposed_half_product.defvjp(_forward_transposed, _backward_transposed)


@functools.cache
def half_products_work() -> bool:
    """Returns whether this CPU is fast at products of bfloat16, and XLA computes them and their gradients there."""
    if jax.default_backend() != "cpu" or not cpu_multiplies_bfloat16():
        return False
    x = jnp.ones((16, 16), jnp.float32)
    try:
        for function in (half_product, transposed_half_product):
            jax.block_until_ready(jax.jit(jax.grad(lambda x, y, f=function: f(x, y).sum(), (0, 1)))(x, x))
    except Exception as error:  # whatever XLA raises where it has no such kernel
        log.debug("products of bfloat16 do not work here: %s", error)
        return False
    return True


def _half(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16)


def _multiply(left: jax.Array, right: jax.Array) -> jax.Array:
    """The float32 product of two bfloat16 matrices.

    Operands and product are kept as they are: a transposition that the compiler folds into the product of one of them
    is slow, and of the result unknown to it.
    """
    left, right = (jax.lax.optimization_barrier(with_layout_constraint(x, _ROW_MAJOR)) for x in (left, right))
    return jax.lax.optimization_barrier(jnp.matmul(left, right, preferred_element_type=jnp.float32))


_ROW_MAJOR = Layout(major_to_minor=(0, 1))
