"""Rows of caches and of encoder outputs: moved into slots, reordered between beams, and shifted to make room.

A cache is a `KVCache`, or a pytree of such and of arrays [L, B, ...]: layers first, then rows. Of encoder outputs, rows
are the first axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.nn.attention import KVCache


def put_prompts(cache: Any, new: Any, rows: jax.Array, column: jax.Array) -> Any:
    """Returns the cache with rows of another one, which hold prompts padded on the left to its whole length.

    Args:
      rows: int32 [R], the row that each takes; one that is not there takes none.
      column: int32 [], the first free column: the prompts lie before it.
    """

    def put(whole: Any, part: Any) -> Any:
        if not isinstance(whole, KVCache):
            return whole.at[:, rows].set(part.astype(whole.dtype), mode="drop")
        width = part.segment_ids.shape[1]
        start = column - width

        def states(old: jax.Array, of_prompts: jax.Array) -> jax.Array:
            block = jax.lax.dynamic_slice_in_dim(old, start, width, axis=3)
            block = block.at[:, rows].set(of_prompts.astype(old.dtype), mode="drop")
            return jax.lax.dynamic_update_slice_in_dim(old, block, start, axis=3)

        def marks(old: jax.Array, of_prompts: jax.Array) -> jax.Array:
            blank = jnp.zeros((len(rows), old.shape[1]), old.dtype)
            lines = jax.lax.dynamic_update_slice_in_dim(blank, of_prompts.astype(old.dtype), start, axis=1)
            return old.at[rows].set(lines, mode="drop")

        return KVCache(
            states(whole.keys, part.keys),
            states(whole.values, part.values),
            marks(whole.segment_ids, part.segment_ids),
            marks(whole.prefix, part.prefix),
            column,
        )

    return _map(put, cache, new)


def take_beams(cache: Any, parents: jax.Array) -> Any:
    """Returns the cache of the beams that are continued.

    Args:
      parents: int32 [B, N], for each row of a slot the one that it goes on from.
    """
    slots, beams = parents.shape

    def take(array: jax.Array, axis: int) -> jax.Array:
        shape = array.shape
        grouped = array.reshape(*shape[:axis], slots, beams, *shape[axis + 1 :])
        # Slot by slot, so that rows on several devices stay where they are.
        taken = jax.vmap(lambda some, which: jnp.take(some, which, axis=axis, mode="clip"), (axis, 0), axis)(
            grouped, parents
        )
        return taken.reshape(shape)

    def of_one(whole: Any) -> Any:
        if not isinstance(whole, KVCache):
            return take(whole, 1)
        return whole._replace(
            keys=take(whole.keys, 1),
            values=take(whole.values, 1),
            segment_ids=take(whole.segment_ids, 0),
            prefix=take(whole.prefix, 0),
        )

    return _map(of_one, cache)


def shift_columns(cache: Any, columns: jax.Array) -> Any:
    """Returns the cache without its first columns, which no row reads any more; as many become free at its end."""

    def shift(whole: Any) -> Any:
        if not isinstance(whole, KVCache):
            return whole
        length = whole.length - columns
        inside = jnp.arange(whole.segment_ids.shape[1])[None] < length
        segments, prefix = (
            jnp.where(inside, jnp.roll(x, -columns, axis=1), 0) for x in (whole.segment_ids, whole.prefix)
        )
        keys, values = (jnp.roll(x, -columns, axis=3) for x in (whole.keys, whole.values))
        return KVCache(keys, values, segments, prefix, length)

    return _map(shift, cache)


def add_columns(cache: Any, columns: int) -> Any:
    """Returns the cache with empty columns at its end, `columns` in all."""

    def add(whole: Any) -> Any:
        if not isinstance(whole, KVCache):
            return whole
        more = columns - whole.segment_ids.shape[1]
        keys, values = (jnp.pad(x, ((0, 0),) * 3 + ((0, more), (0, 0))) for x in (whole.keys, whole.values))
        segments, prefix = (jnp.pad(x, ((0, 0), (0, more))) for x in (whole.segment_ids, whole.prefix))
        return KVCache(keys, values, segments, prefix, whole.length)

    return _map(add, cache)


def put_encoded(encoded: Any, new: Any, rows: jax.Array) -> Any:
    """Returns encoder outputs with those of other rows in their places; as `put_prompts`."""
    return jax.tree.map(lambda whole, part: whole.at[rows].set(part.astype(whole.dtype), mode="drop"), encoded, new)


def _map(function: Callable[..., Any], *caches: Any) -> Any:
    return jax.tree.map(function, *caches, is_leaf=lambda leaf: isinstance(leaf, KVCache))
