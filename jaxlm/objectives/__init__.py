"""Loss functions of packed batches.

A loss takes a model's outputs and the batch, and returns the pair (sum of weighted losses, sum of weights): sums over
micro-batches, devices and hosts are added up and divided once, so that no split of a batch changes its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

Batch = Mapping[str, jax.Array]
Loss = Callable[[Any, Batch], tuple[jax.Array, jax.Array]]
Apply = Callable[[Any, Any, Batch, Any], Any]
"""(params, frozen parameters, batch, PRNG key or None) -> a model's outputs; without a key, without dropout."""


def without_frozen(apply: Callable[[Any, Batch, Any], Any]) -> Apply:
    """Returns `apply`, a function of (params, batch, key), as one that takes frozen parameters and ignores them."""
    return lambda params, frozen, batch, key: apply(params, batch, key)
