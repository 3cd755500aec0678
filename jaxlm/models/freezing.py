"""Divides a model's parameters into trained and frozen ones, by what `model.freeze` names.

A parameter that is frozen whole goes into `TrainState.frozen`: it is neither differentiated nor kept in checkpoints,
and has no optimizer state. Of stacked layers that are trained in part, the whole stack is trained, and a mask in the
optimizer holds the frozen layers (`jaxlm.optim.gates`).
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.errors import UserError, did_you_mean
from jaxlm.models.base import Model, flatten
from jaxlm.models.places import Place, check_own_layers, places, stack_sizes, unflatten
from jaxlm.nn.layers import Key
from jaxlm.nn.quantized import SCALE, dequantize, quantize

_LAYERS = re.compile(r"layers(?:\.(\d+)(?:-(\d+))?)?")


class KernelDims(NamedTuple):
    """How many leading axes of a kernel are no inputs (layers), and how many then are."""

    stacks: int
    inputs: int


class Split(Protocol):
    """What is trained of a model, and what is only read: two trees, and the way back to the model's own parameters."""

    def split(self, params: Any) -> tuple[Any, Any]:
        """Returns (trained, frozen) of the model's parameters, or of any tree of the same structure: shapes, axes."""
        ...

    def merge(self, trained: Any, frozen: Any, key: Key = None) -> Any:
        """Returns the model's parameters.

        Args:
          key: of a training step, for what is drawn at random there; None: as evaluated and exported.
        """
        ...


@dataclass(frozen=True)
class Frozen:
    """A `Split` by name.

    Attributes:
      whole: names of the parameters that are frozen whole.
      layers: name of a stacked parameter that is trained in part -> which of its layers are trained.
      dtype: in which those that are frozen whole are held; `nn.layers.param` takes them back to float32 where they are
        used. int8: kernels so (`nn.quantized`), the rest in bfloat16.
      int8_kernels: of int8, the weights of dense maps by name.
    """

    whole: frozenset[str] = frozenset()
    layers: Mapping[str, tuple[bool, ...]] = field(default_factory=dict)
    dtype: Any = jnp.float32
    int8_kernels: Mapping[str, KernelDims] = field(default_factory=dict)

    def split(self, params: Any) -> tuple[Any, Any]:
        """See `Split.split`."""
        if not self.whole:
            return params, {}
        flat = flatten(params)
        trained = unflatten({name: leaf for name, leaf in flat.items() if name not in self.whole})
        held: dict[str, Any] = {}
        for name in flat.keys() & self.whole:
            held |= self._held(name, flat[name])
        return trained, unflatten(held)

    def _held(self, name: str, leaf: Any) -> dict[str, Any]:
        """A frozen parameter, or what stands for one, as it is held; by name."""
        if self.dtype != jnp.int8:
            return {name: _cast(leaf, self.dtype)}
        if name not in self.int8_kernels:
            return {name: _cast(leaf, jnp.bfloat16)}
        integers, scale = _quantized(leaf, self.int8_kernels[name])
        return {name: integers, f"{name}_{SCALE}": scale}

    def merge(self, trained: Any, frozen: Any, key: Key = None) -> Any:
        """See `Split.merge`."""
        return unflatten({**flatten(trained), **flatten(frozen)}) if self.whole else trained

    def restore(self, params: Any) -> Any:
        """Returns what `merge` returns, in float32: of kernels in 8 bits, what they stand for."""
        flat = flatten(params)
        scales = {f"{name}_{SCALE}": name for name in self.int8_kernels.keys() & self.whole}
        made = {name: leaf.astype(jnp.float32) for name, leaf in flat.items() if name not in scales}
        for name in scales.values():
            made[name] = dequantize(flat[name], flat[f"{name}_{SCALE}"], *self.int8_kernels[name])
        return unflatten(made)

    def count(self, shapes: Any) -> tuple[int, int]:
        """Returns how many numbers of a model's parameters are trained, and how many are frozen."""
        total = trained = 0
        for name, struct in flatten(shapes).items():
            size = math.prod(struct.shape)
            mask = self.layers.get(name)
            total += size
            if mask is not None:
                trained += size // len(mask) * sum(mask)
            elif name not in self.whole:
                trained += size
        return trained, total - trained


def _cast(leaf: Any, dtype: Any) -> Any:
    """A parameter, or what stands for one, in another dtype; a tuple of axes as it is."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)
    return leaf.astype(dtype) if hasattr(leaf, "astype") else leaf


def _quantized(leaf: Any, dims: KernelDims) -> tuple[Any, Any]:
    """A kernel, or what stands for one, in 8 bits, and its scale."""

    def without_inputs(of_axes: Sequence[Any]) -> tuple[Any, ...]:
        return (*of_axes[: dims.stacks], *of_axes[dims.stacks + dims.inputs :])

    if isinstance(leaf, tuple):
        return leaf, without_inputs(cast(Any, leaf))
    sharding, of_scale = leaf.sharding, None
    if isinstance(sharding, NamedSharding):
        spec = (*sharding.spec, *(None,) * (leaf.ndim - len(sharding.spec)))
        of_scale = NamedSharding(sharding.mesh, PartitionSpec(*without_inputs(spec)), memory_kind=sharding.memory_kind)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        scale = jax.ShapeDtypeStruct(without_inputs(leaf.shape), jnp.float32, sharding=of_scale)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.int8, sharding=sharding), scale
    placed = None if of_scale is None else (sharding, of_scale)
    return jax.jit(quantize, static_argnums=(1, 2), out_shardings=placed)(leaf, *dims)


TRAIN_ALL = Frozen()


def freeze(model: Model, patterns: Sequence[str]) -> Frozen:
    """Returns what is frozen under `model.freeze`.

    Args:
      patterns: `embeddings`; `layers`, `layers.3`, `layers.0-3` (the lowest layer is 0, the last number is included);
        `encoder`, `decoder`, alone or before one of these and a dot; `trunk`, all but the head; or a pattern of
        parameter names with a slash, as `trunk/stack/layers/q*`.
    Raises:
      UserError: a pattern that names nothing in this model, or nothing is left to train.
    """
    if not patterns:
        return TRAIN_ALL
    found = places(model)
    held: dict[str, set[int]] = {}
    """By name: the entries along the leading axis that are frozen; of what has no layers, {0}."""
    for pattern in patterns:
        for name, entries in _match(model, found, pattern).items():
            held.setdefault(name, set()).update(entries)
    whole = frozenset(name for name, entries in held.items() if len(entries) == max(found[name].count, 1))
    layers = {
        name: tuple(entry not in entries for entry in range(found[name].count))
        for name, entries in held.items()
        if name not in whole
    }
    if len(whole) == len(found):
        raise UserError(f"model.freeze: {', '.join(patterns)} leave nothing of the model to train")
    return Frozen(whole, layers)


def _match(model: Model, found: Mapping[str, Place], pattern: str) -> dict[str, range | list[int]]:
    """Returns the parameters that a pattern names, and which of their layers."""
    whole = {name: range(max(place.count, 1)) for name, place in found.items()}
    if "/" in pattern:
        if names := fnmatch.filter(found, pattern):
            return {name: whole[name] for name in names}
        raise UserError(f"model.freeze: no parameter is named {pattern!r}{did_you_mean(pattern, list(found))}")
    sizes = stack_sizes(dict(found))
    stacks = {place.stack for place in found.values() if place.stack}
    first, _, rest = pattern.partition(".")
    stack, part = (first, rest) if first in stacks else (None, pattern)
    inside = {name: place for name, place in found.items() if stack is None or place.stack == stack}
    if stack is not None and not part:
        return {name: whole[name] for name, place in inside.items() if place.part != "head"}
    if part == "trunk" and stack is None:
        return {name: whole[name] for name, place in inside.items() if place.part != "head"}
    if part == "embeddings":
        return {name: whole[name] for name, place in inside.items() if place.part == "embeddings"}
    if (numbers := _LAYERS.fullmatch(part)) is None:
        known = ["embeddings", "layers", *sorted(stacks), "trunk"]
        raise UserError(
            f"model.freeze: expected embeddings, layers.FIRST-LAST, {', '.join([*sorted(stacks), 'trunk'])} or a "
            f"pattern of parameter names such as trunk/tokens, found {pattern!r}{did_you_mean(pattern, known)}"
        )
    low, high = numbers[1], numbers[2] or numbers[1]
    if low is None:
        return {name: whole[name] for name, place in inside.items() if place.part == "layers"}
    check_own_layers(model, dict(found), f"model.freeze: {pattern}")
    most = max(size for name, size in sizes.items() if stack in (None, name))
    if not int(low) <= int(high) < most:
        raise UserError(f"model.freeze: {pattern}: expected layers of 0 to {most - 1}, the lower first")
    return {
        name: [entry for entry in range(place.count) if int(low) <= place.first + entry <= int(high)]
        for name, place in inside.items()
        if place.part == "layers" and any(int(low) <= place.first + e <= int(high) for e in range(place.count))
    }


def kernel_dims(model: Model) -> dict[str, KernelDims]:
    """Returns the weights of a model's dense maps, by name."""
    axes = flatten(model.axes)
    return {name: KernelDims(int(axes[name][0] == "layers"), inputs) for name, inputs in model.kernels.items()}


def like(params: Any, values: Mapping[str, Any], default: Any) -> Any:
    """Returns a tree like `params` of arrays: of each parameter its value by name, one number or one for each layer."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: np.asarray(values.get(jax.tree_util.keystr(path, simple=True, separator="/"), default)), params
    )
