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
