"""Muon (Jordan et al., 2024) on the matrices of hidden layers, told by their logical axes; Adam on everything else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jaxlm.optim.matrices import matrix_dims
from jaxlm.parallel.sharding import is_axes

_RMS = 0.2
"""Root mean square of an update before the learning rate, about that of Adam's (Liu et al., 2025, arXiv:2502.16982)."""


def scale_by_muon_or(
    adam: optax.GradientTransformation,
    axes: Any,
    *,
    momentum: float,
    store: Callable[[optax.GradientTransformation], optax.GradientTransformation],
) -> optax.GradientTransformation:
    """Returns Muon for hidden matrices and `adam` for embeddings, output layers, norms and biases.

    Each layer's matrix is orthogonalised by itself, its heads joined; query, key and value of a fused one, and the
    gates of a recurrent one, each by itself. Updates are scaled to Adam's size, so that one learning rate serves both.

    Args:
      axes: tree of the parameters' logical axes.
      momentum: decay of the mean of gradients, looked at one step ahead (Nesterov).
      store: wraps the part of the rule that keeps moments.
    """

    def dimensions(names: Any) -> Any:
        block = matrix_dims(names)
        return optax.MaskedNode() if block.table or not block.rows else MuonDimensionNumbers(block.rows, block.columns)

    numbers = jax.tree.map(dimensions, axes, is_leaf=is_axes)
    kinds = jax.tree.map(
        lambda number: "muon" if isinstance(number, MuonDimensionNumbers) else "adam", numbers, is_leaf=_is_number
    )
    muon = optax.chain(
        store(scale_by_muon(beta=momentum, weight_dimension_numbers=numbers)),
        optax.stateless(lambda updates, _: jax.tree.map(_to_adams_size, updates, numbers)),
    )
    return optax.partition({"muon": muon, "adam": adam}, kinds)


def _to_adams_size(update: jax.Array, number: MuonDimensionNumbers) -> jax.Array:
    sides: Any = number
    return update * (_RMS * max(math.prod(update.shape[dim] for dim in side) for side in sides) ** 0.5)


def _is_number(node: Any) -> bool:
    return isinstance(node, (MuonDimensionNumbers, optax.MaskedNode))
