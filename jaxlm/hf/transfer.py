"""Arrays on their way between files and devices: a host holds what its own devices need, a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_PIECE_BYTES = 1 << 26
"""Most bytes that are held at a time, unless one entry of the first dimension has more."""

Index = tuple[tuple[int, int], ...]
"""Start and stop in each dimension."""


def place(struct: jax.ShapeDtypeStruct, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """Returns a float32 array of a shape and sharding, whose parts are read as its devices need them.

    Args:
      struct: without a sharding, the array lies on the default device.
      read: a part's float32 values; called once for what several devices share.
    """
    shape, sharding = struct.shape, struct.sharding
    if sharding is None:
        return _on_devices(tuple((0, size) for size in shape), [None], read)[0]
    devices: dict[Index, list[Any]] = {}
    needs = sharding.addressable_devices_indices_map(shape)
    for device, slices in needs.items():
        index = tuple(part.indices(size)[:2] for part, size in zip(slices or (), shape, strict=True))
        devices.setdefault(index, []).append(device)
    made: dict[Any, jax.Array] = {}
    for index, group in devices.items():
        made |= zip(group, _on_devices(index, group, read), strict=True)
    return jax.make_array_from_single_device_arrays(shape, sharding, [made[device] for device in needs])


def _on_devices(index: Index, devices: list[Any], read: Callable[[Index], np.ndarray]) -> list[jax.Array]:
    """One part on each of the devices; put together there where it is large."""
    shape = tuple(stop - start for start, stop in index)
    if not shape or 4 * math.prod(shape) <= _PIECE_BYTES:
        value = read(index)
        return [jax.device_put(value, device) for device in devices]
    (first, last), *others = index
    step = max(1, _PIECE_BYTES // (4 * math.prod(shape[1:])))
    wholes = [jnp.zeros(shape, jnp.float32, device=device) for device in devices]
    for start in range(first, last, step):
        part = read(((start, min(start + step, last)), *others))
        at = np.int32(start - first)
        wholes = [_fill(whole, jax.device_put(part, device), at) for whole, device in zip(wholes, devices, strict=True)]
        jax.block_until_ready(wholes)  # so that the part can go
    return wholes


@jax.jit(donate_argnums=0)
def _fill(whole: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)


def entries(array: Any) -> Iterator[np.ndarray]:
    """The entries of an array's first dimension as float32, on the host; every process has to ask for all of them."""
    if array.nbytes <= _PIECE_BYTES or not isinstance(array, jax.Array):
        yield from on_host(array)
        return
    for i in range(array.shape[0]):
        yield on_host(_entry(array, np.int32(i)))


@jax.jit
def _entry(array: jax.Array, i: Any) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, i, 0, keepdims=False)


def on_host(array: Any) -> np.ndarray:
    """A whole array as float32; one that several processes share, they have to ask for together."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array, np.float32)
