"""Muon (Jordan et al., 2024) for the matrices of hidden layers, told by their logical axes; Adam for the rest."""

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

    Each layer's matrix is orthogonalized by itself, with its heads joined; so are query, key and value of a fused
    matrix, and the gates of a recurrent one. Updates are scaled to Adam's size: one learning rate serves both rules.
    `optax.contrib.muon(consistent_rms=0.2)` is the same rule, but for moments that `store` cannot reach.

    Args:
      axes: tree of the parameters' logical axes.
      momentum: decay of the mean of gradients, which is looked at one step ahead (Nesterov).
      store: wraps a rule that keeps moments.
    """

    def dimensions(names: Any) -> Any:
        matrix = matrix_dims(names)
        hidden = matrix.rows and not matrix.table
        return MuonDimensionNumbers(matrix.rows, matrix.columns) if hidden else optax.MaskedNode()

    def rule(numbers: Any) -> str:
        return "muon" if isinstance(numbers, MuonDimensionNumbers) else "adam"

    numbers = jax.tree.map(dimensions, axes, is_leaf=is_axes)
    rules = jax.tree.map(rule, numbers, is_leaf=lambda x: isinstance(x, (MuonDimensionNumbers, optax.MaskedNode)))
    muon = optax.chain(
        store(scale_by_muon(beta=momentum, weight_dimension_numbers=numbers)),
        optax.stateless(lambda updates, _: jax.tree.map(_scale_to_adam, updates, numbers)),
    )
    return optax.partition({"muon": muon, "adam": adam}, rules)


def _scale_to_adam(update: jax.Array, numbers: Any) -> jax.Array:
    longest = max(math.prod(update.shape[dim] for dim in side) for side in numbers)
    return update * (_RMS * longest**0.5)
