"""What the TPU's attention kernels share: sizes of blocks, and the part of each array that a device has."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxlm.parallel.sharding import Rules

LANES = 128
"""The kernels take lengths that are multiples of it."""
BLOCKS = (512, 256, 128)
"""Sizes of blocks, in columns; the first one that divides the length is taken."""

_Part = str | tuple[str, ...] | None
"""The mesh axes that an axis of an array is split over, as a `PartitionSpec` names them."""


def block_size(length: int) -> int:
    """Columns of a block in rows of this length, a multiple of `LANES`."""
    return next(block for block in BLOCKS if length % block == 0)


def fill(x: jax.Array, multiple: int) -> jax.Array:
    """Pads axis 1 with zeros at the end, to a multiple."""
    missing = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def ways(part: _Part, rules: Rules) -> int:
    """Number of shards of an axis that is split over these mesh axes."""
    return math.prod(rules.mesh.shape[axis] for axis in _axes(part)) if rules.mesh is not None else 1


def index_of(part: _Part, rules: Rules) -> jax.Array | int:
    """Which of those shards a device has, inside `jax.shard_map`."""
    return jax.lax.axis_index(_axes(part)) if rules.mesh is not None and _axes(part) else 0


def _axes(part: _Part) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
