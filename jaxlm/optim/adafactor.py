"""Adafactor (Shazeer & Stern, 2018, arXiv:1804.04235): one second moment for each row and column of a matrix.

Optax's factors the two largest dimensions of an array, which under stacked layers and split heads are not a matrix's:
of a query [24, 1024, 16, 64] it factors none, and its update clipping takes all layers for one. Here the logical axes
decide, and each layer counts for itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.optim.matrices import MatrixDims, matrix_dims
from jaxlm.parallel.sharding import is_axes

_FACTORED_FROM = 128
_EPS = 1e-30
_LEAST_SIZE = 1e-3


class AdafactorState(NamedTuple):
    """Means of squared gradients; a parameter is either in `rows` and `columns` or in `whole`.

    Attributes:
      count: int32 [], steps done.
      rows, columns: the parameter's shape with ones for the dimensions that were averaged over.
      whole: the parameter's shape.
    """

    count: Any
    rows: Any
    columns: Any
    whole: Any


def scale_by_adafactor(axes: Any, *, decay: float = 0.8) -> optax.GradientTransformation:
    """Divides a gradient by the root of its factored second moment, and scales it by its parameter's size.

    With beta = 1 - t^-decay and g a matrix: r = beta r + (1 - beta) mean of g^2 over columns, c likewise over rows,
    u = g / sqrt(r c / mean(r)); then u / max(1, rms(u)) * max(0.001, rms(parameter)). Matrices of less than 128 rows or
    columns, and vectors, keep a second moment per number.

    Args:
      axes: tree of the parameters' logical axes.
    """
    blocks = [matrix_dims(names) for names in jax.tree.leaves(axes, is_leaf=is_axes)]

    def init(params: Any) -> AdafactorState:
        leaves, structure = jax.tree.flatten(params)
        made: tuple[list[Any], ...] = ([], [], [])
        for param, block in zip(leaves, blocks, strict=True):
            factored = _factored(param.shape, block)
            shapes = [_averaged(param.shape, dims) for dims in (block.columns, block.rows)]
            rows, columns = (jnp.zeros(shape, jnp.float32) if factored else optax.MaskedNode() for shape in shapes)
            whole = optax.MaskedNode() if factored else jnp.zeros(param.shape, jnp.float32)
            for tree, value in zip(made, (rows, columns, whole), strict=True):
                tree.append(value)
        return AdafactorState(jnp.zeros((), jnp.int32), *(structure.unflatten(tree) for tree in made))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, AdafactorState]:
        grads, structure = jax.tree.flatten(updates)
        count = jnp.asarray(optax.safe_increment(state.count))
        beta = 1.0 - count.astype(jnp.float32) ** -decay
        trees = (params, state.rows, state.columns, state.whole)
        leaves = zip(grads, *(structure.flatten_up_to(tree) for tree in trees), blocks, strict=True)
        made = [_step(*leaf, beta=beta) for leaf in leaves]
        updates, *moments = (structure.unflatten(tree) for tree in zip(*made, strict=True))
        return updates, AdafactorState(count, *moments)

    return optax.GradientTransformation(init, update)


def _factored(shape: tuple[int, ...], block: MatrixDims) -> bool:
    sizes = [math.prod(shape[dim] for dim in dims) for dims in (block.rows, block.columns)]
    return min(sizes) >= _FACTORED_FROM


def _averaged(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if dim in dims else size for dim, size in enumerate(shape))


def _rms(x: jax.Array, block: MatrixDims) -> jax.Array:
    return jnp.sqrt(jnp.square(x).mean(block.dims, keepdims=True))


def _step(
    grad: Any, param: Any, rows: Any, columns: Any, whole: Any, block: MatrixDims, *, beta: jax.Array
) -> tuple[Any, Any, Any, Any]:
    """Returns the update of one parameter, and its moments."""
    square = jnp.square(grad) + _EPS

    def blend(old: jax.Array, new: jax.Array) -> jax.Array:
        return beta * old + (1.0 - beta) * new

    if _factored(grad.shape, block):
        rows = blend(rows, square.mean(block.columns, keepdims=True))
        columns = blend(columns, square.mean(block.rows, keepdims=True))
        update = grad * jax.lax.rsqrt(rows / rows.mean(block.rows, keepdims=True)) * jax.lax.rsqrt(columns)
    else:
        whole = blend(whole, square)
        update = grad * jax.lax.rsqrt(whole)
    update = update / jnp.maximum(1.0, _rms(update, block))
    return update * jnp.maximum(_LEAST_SIZE, _rms(param, block)), rows, columns, whole
