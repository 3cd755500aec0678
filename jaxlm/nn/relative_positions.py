"""Biases of attention by relative position: buckets of distances, and the shift from distances to pairs of columns.

Shape letters: B rows, T queries, S keys, N heads, X buckets.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def relative_buckets(distances: np.ndarray, *, num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """Returns the bucket of each distance, key's column minus query's: near distances have buckets of their own, far
    ones share buckets that widen with the logarithm (T5; Raffel et al., 2020).

    With `bidirectional` (an encoder), half of the buckets are for keys after the query; a decoder has none for them.
    """
    if bidirectional:
        num_buckets //= 2
        first = np.where(distances > 0, num_buckets, 0)
        distances = np.abs(distances)
    else:
        first = np.zeros_like(distances)
        distances = np.maximum(-distances, 0)
    exact = num_buckets // 2
    # In float32, since the published models were trained with what it rounds to.
    octaves = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    octaves = octaves / np.float32(math.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + octaves.astype(np.int64), num_buckets - 1)
    return first + np.where(distances < exact, distances, far)


def relative_bias(
    table_XN: Float[Array, "X N"], length: int, *, max_distance: int, bidirectional: bool
) -> Float[Array, "1 N T T"]:
    """Returns the bias of each query's and key's logit by their distance; `table_XN` has a row for each bucket."""
    distances = np.arange(1 - length, length + 1)
    buckets = relative_buckets(
        distances, num_buckets=table_XN.shape[0], max_distance=max_distance, bidirectional=bidirectional
    )
    of_distance_NK = table_XN[buckets].T
    num_heads, width = of_distance_NK.shape
    return by_distance(jnp.broadcast_to(of_distance_NK[:, None], (num_heads, length, width)))[None]


def relative_bias_at(
    table_XN: Float[Array, "X N"],
    columns_BT: Int[Array, "B T"],
    length: int,
    *,
    max_distance: int,
    bidirectional: bool,
) -> Float[Array, "B N T S"]:
    """As `relative_bias`, for queries in the given columns of a row of `length` keys."""
    distances = np.arange(1 - length, length)
    buckets = relative_buckets(
        distances, num_buckets=table_XN.shape[0], max_distance=max_distance, bidirectional=bidirectional
    )
    keys_S = jnp.arange(length, dtype=jnp.int32)
    index_BTS = keys_S[None, None] - columns_BT[:, :, None] + (length - 1)
    return jnp.moveaxis(jnp.take(table_XN[buckets], index_BTS, axis=0), 3, 1)


def by_distance(x: Float[Array, "*N T U"]) -> Float[Array, "*N T T"]:
    """Returns y[..., t, s] = x[..., t, T - 1 + s - t], for x with an entry for each distance from 1 - T to T."""
    # Row t is the distances from -t on. Rows of 2T laid end to end and cut at 2T - 1 each start one earlier, which
    # spares the gradient a scatter of T^2 elements.
    *outer, length, width = x.shape
    rows = x.reshape(*outer, -1)
    shifted = rows[..., : length * (width - 1)].reshape(*outer, length, width - 1)
    return shifted[..., length - 1 :]
