"""What the TPU's attention kernels share: sizes of blocks, and how a mesh runs a kernel on each device's part.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

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


class Operands(NamedTuple):
    """Queries, keys, values, and the segment ids of queries and of keys."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    query_BT: jax.Array
    key_BS: jax.Array

    def filled(self, rules: Rules) -> Operands:
        """Fills lengths with segment 0 to multiples of `LANES`, that of queries to one on each of its shards."""
        multiple = LANES * ways(rules.spec(("length",))[0], rules)
        q, query_ids = (_fill(x, multiple) for x in (self.q_BTNH, self.query_BT))
        k, v, key_ids = (_fill(x, LANES) for x in (self.k_BSKH, self.v_BSKH, self.key_BS))
        return Operands(q, k, v, query_ids, key_ids)


def on_each_device(
    kernel: Callable[..., Any], first: Any, first_spec: Any, operands: Operands, rules: Rules
) -> jax.Array:
    """Runs a kernel on each device's rows, heads and (where `length` is split) queries, against all keys.

    Args:
      kernel: (first, queries [B, T, N, H], keys [B, S, K, H], values, segment ids [B, T] and [B, S]) -> [B, T, N, H].
      first, first_spec: what else it is given, and its `PartitionSpec`s.
      operands: filled.
    Returns:
      [B, T, N, H], filled as the queries are.
    """
    if rules.mesh is not None:
        rows, length, heads, head_dim = rules.spec(("batch", "length", "act_heads", "head_dim"))
        queries, keys = PartitionSpec(rows, length, heads, head_dim), PartitionSpec(rows, None, heads, head_dim)
        kernel = jax.shard_map(
            kernel,
            mesh=rules.mesh,
            in_specs=(first_spec, queries, keys, keys, PartitionSpec(rows, length), PartitionSpec(rows, None)),
            out_specs=queries,
            check_vma=False,  # which the kernels' outputs do not carry
        )
    return kernel(first, *operands)


def ways(part: _Part, rules: Rules) -> int:
    """Number of shards of an axis that is split over these mesh axes."""
    return math.prod(rules.mesh.shape[axis] for axis in _axes(part)) if rules.mesh is not None else 1


def index_of(part: _Part, rules: Rules) -> jax.Array | int:
    """Which of those shards a device has, inside `jax.shard_map`."""
    return jax.lax.axis_index(_axes(part)) if rules.mesh is not None and _axes(part) else 0


def _fill(x: jax.Array, multiple: int) -> jax.Array:
    """Pads axis 1 with zeros at the end, to a multiple."""
    missing = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, missing)] + [(0, 0)] * (x.ndim - 2)) if missing else x


def _axes(part: _Part) -> tuple[str, ...]:
    return () if part is None else (part,) if isinstance(part, str) else tuple(part)
