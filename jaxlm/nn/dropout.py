"""Dropout whose draws are a function of the key and of each element's place."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from jaxlm.nn.layers import Key


def dropout(x: jax.Array, rate: float, key: Key) -> jax.Array:
    """Zeroes elements with probability `rate` and scales the rest by 1 / (1 - rate) (Srivastava et al., 2014).

    A 32-bit draw decides each element, so `rate` is taken to the nearest 2^-32 and the scale is exact for that. The
    draws do not depend on how x is laid out over devices. Elements 2^32 places apart share theirs.

    Args:
      rate: in [0, 1).
    """
    if key is None or rate == 0.0:
        return x
    threshold = min(round(rate * 2**32), 2**32 - 1)
    scale = np.asarray(2**32 / (2**32 - threshold), x.dtype)
    return jnp.where(draws(key, x.shape) >= np.uint32(threshold), x * scale, jnp.zeros_like(x))


def draws(key: jax.Array, shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """Uniform 32-bit draws: two words of the key, hashed with each element's place in row-major order.

    The mixing steps are those of a 32-bit integer hash of low bias (multipliers 0x21f0aaad and 0x735a2d97, shifts 16,
    15, 15; https://github.com/skeeto/hash-prospector), with one word of the key before each multiplication: about ten
    operations to an element, where a counter-based generator such as threefry takes some fifty. That is enough for
    dropout, and no more: neither cryptographic nor meant for sampling.
    """
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    rank = len(shape)
    place = jnp.zeros((1,) * rank, jnp.uint32)
    for axis, size in enumerate(shape):
        along = tuple(size if other == axis else 1 for other in range(rank))
        stride = np.uint32(math.prod(shape[axis + 1 :]) % 2**32)
        place = place + jax.lax.broadcasted_iota(jnp.uint32, along, axis) * stride
    x = place ^ first
    x = (x ^ (x >> 16)) * np.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15) ^ second) * np.uint32(0x735A2D97)
    return x ^ (x >> 15)
