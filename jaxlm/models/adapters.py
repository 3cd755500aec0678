"""The adapters of a model: which kernels have one, its arrays, how they begin, and the weights that they amount to.

What an adapter computes is said in `nn.adapters`. Here it is a set of parameters beside the model's own, stacked over
layers and split over devices as the kernels are.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError, nearest
from jaxlm.models.base import Model, flatten
from jaxlm.models.freezing import Frozen
from jaxlm.models.places import unflatten
from jaxlm.nn import adapters as beside
from jaxlm.nn.layers import Key
from jaxlm.parallel.sharding import param_shardings

GROUPS = {"attention": ("heads", "kv_heads"), "mlp": ("mlp",), "all": ()}
"""Names for kernels by their logical axes: those that have one of these; `all` has every kernel of the trunk."""
LORA, DORA, IA3, IA3_INPUT = ("lora_a", "lora_b"), "dora_scale", "ia3_scale", "ia3_input_scale"
_ADAPTERS = 0x10A
"""Folded into the keys that adapters are drawn and dropped by, which so differ from all others."""
_UNNAMED = ("trunk", "stack", "layers")
"""Parts of a path that tell no kernels of a family apart."""


class Leaf(NamedTuple):
    """One array of an adapter."""

    kernel: str
    """Path of the kernel that it stands beside."""
    suffix: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model.

    Attributes:
      targets: path of a kernel -> the suffixes of the arrays beside it (`nn.adapters.SUFFIXES`).
      rank: of LoRA's matrices.
    """

    model: Model
    targets: Mapping[str, tuple[str, ...]]
    rank: int = 0

    @cached_property
    def leaves(self) -> dict[str, Leaf]:
        """Path -> array."""
        shapes, axes = flatten(self.model.shapes), flatten(self.model.axes)
        made = {}
        for kernel, suffixes in self.targets.items():
            for suffix in suffixes:
                shape, names = self._dims(suffix, kernel, shapes[kernel].shape, axes[kernel])
                made[f"{kernel}_{suffix}"] = Leaf(kernel, suffix, shape, names)
        return made

    def _dims(
        self, suffix: str, kernel: str, shape: Sequence[int], axes: Sequence[str]
    ) -> tuple[tuple[int, ...], tuple[str, ...]]:
        stack = 1 if axes[0] == "layers" else 0
        dims = list(zip(shape, axes, strict=True))
        middle = stack + self.model.kernels[kernel]
        layers, inputs, outputs, rank = dims[:stack], dims[stack:middle], dims[middle:], [(self.rank, "rank")]
        made = {
            "lora_a": layers + inputs + rank,
            "lora_b": layers + rank + outputs,
            IA3_INPUT: layers + inputs,
        }.get(suffix, layers + outputs)
        return tuple(size for size, _ in made), tuple(name for _, name in made)

    @cached_property
    def shapes(self) -> Any:
        """Tree of ShapeDtypeStructs; with shardings where the model has a mesh."""
        shapes = {name: jax.ShapeDtypeStruct(leaf.shape, jnp.float32) for name, leaf in self.leaves.items()}
        rules = self.model.compute.rules
        if rules.mesh is not None:
            shardings = param_shardings({name: leaf.axes for name, leaf in self.leaves.items()}, shapes, rules)
            shapes = {
                name: jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=shardings[name])
                for name, struct in shapes.items()
            }
        return unflatten(dict(shapes))

    @property
    def axes(self) -> Any:
        """Tree of logical axes."""
        return unflatten({name: leaf.axes for name, leaf in self.leaves.items()})

    def init(self, key: jax.Array, params: Any) -> Any:
        """Returns the tree of adapters that change nothing yet: of LoRA, A is uniform in +-1 / sqrt(inputs), B is 0.

        Args:
          key: PRNG key of A.
          params: tree of the model's own parameters.
        """

        def draw(key: jax.Array, kernels: Mapping[str, jax.Array]) -> Any:
            key = jax.random.fold_in(key, _ADAPTERS)
            return unflatten({
                path: self._first(leaf, key, kernels[leaf.kernel], path) for path, leaf in self.leaves.items()
            })  # fmt: skip

        own = flatten(params)
        return jax.jit(draw, out_shardings=self._shardings(self.shapes))(
            key, {name: own[name] for name in self.targets}
        )

    def _first(self, leaf: Leaf, key: jax.Array, kernel: jax.Array, path: str) -> jax.Array:
        stack = 1 if leaf.axes[0] == "layers" else 0
        if leaf.suffix == "lora_a":
            # As Kaiming's with a = sqrt(5), which PEFT draws from. The draw depends on the path, not on other targets.
            bound = math.prod(leaf.shape[stack:-1]) ** -0.5
            return jax.random.uniform(
                jax.random.fold_in(key, zlib.crc32(path.encode()) >> 1), leaf.shape, minval=-bound, maxval=bound
            )
        if leaf.suffix == "lora_b":
            return jnp.zeros(leaf.shape)
        if leaf.suffix == DORA:
            norms = lambda one: beside.output_norms(one, len(leaf.shape) - stack)  # noqa: E731
            return jax.vmap(norms)(kernel) if stack else norms(kernel)
        return jnp.ones(leaf.shape)

    def with_keys(self, params: Any, key: jax.Array) -> Any:
        """Adds to a whole tree the keys of the adapters' dropout: of each kernel and layer its own."""
        keys = {}
        low_rank = [kernel for kernel, suffixes in self.targets.items() if "lora_a" in suffixes]
        for kernel in low_rank:
            own = jax.random.fold_in(key, zlib.crc32(kernel.encode()) >> 1)
            axes, shape = flatten(self.model.axes)[kernel], flatten(self.model.shapes)[kernel].shape
            keys[f"{kernel}_lora_key"] = jax.random.split(own, shape[0]) if axes[0] == "layers" else own
        return unflatten({**flatten(params), **keys})

    def fold(self, params: Any) -> Any:
        """Returns the tree of the model's own parameters that computes what a whole tree, adapters included, does."""
        flat, own = flatten(params), flatten(self.model.shapes)
        changed = jax.eval_shape(self._folded, flat)
        shardings = self._shardings({name: own[name] for name in changed})
        folded = jax.jit(self._folded, out_shardings=shardings)(flat)
        return unflatten({name: folded[name] if name in folded else flat[name] for name in own})

    def _folded(self, flat: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The kernels that adapters stand beside, and their biases, float32."""
        axes = flatten(self.model.axes)
        folded: dict[str, jax.Array] = {}
        for kernel, suffixes in self.targets.items():
            bias = f"{kernel}_bias" if f"{kernel}_bias" in axes else None
            adapter = {suffix: flat[f"{kernel}_{suffix}"] for suffix in suffixes}

            def one(weights: jax.Array, of_bias: jax.Array | None, adapter: beside.Adapter) -> Any:
                return beside.merged(weights, of_bias, adapter, self.model.compute.adapter_scale)

            made = (jax.vmap(one) if axes[kernel][0] == "layers" else one)(
                flat[kernel], None if bias is None else flat[bias], adapter
            )
            folded |= dict(zip([kernel] if bias is None else [kernel, bias], made, strict=True))
        return folded

    def _shardings(self, shapes: Any) -> Any:
        """Where arrays lie; None without a mesh."""
        if self.model.compute.rules.mesh is None:
            return None
        return jax.tree.map(lambda struct: struct.sharding, shapes)


@dataclass(frozen=True)
class AdaptedSplit(Frozen):
    """A `freezing.Split` of a tree that has adapters beside the model's own parameters."""

    adapters: Adapters | None = None

    def merge(self, trained: Any, frozen: Any, key: Key = None) -> Any:
        """Returns the model's own parameters and the adapters; with a key those of the adapters' dropout, too."""
        whole = super().merge(trained, frozen, key)
        if key is None or self.adapters is None or not self.adapters.model.compute.adapter_dropout:
            return whole
        return self.adapters.with_keys(whole, jax.random.fold_in(key, _ADAPTERS))


def adaptable(model: Model) -> dict[str, str]:
    """The kernels beside which an adapter may stand, those of the trunk that HF keeps as a module of their own: path ->
    the name that tells it from others, "q" or "decoder/q"."""
    modules = {rule.param for rule in model.weight_map.rules if rule.key.endswith(".weight")}
    return {
        path: "/".join(part for part in path.split("/") if part not in _UNNAMED)
        for path in model.kernels
        if path.startswith("trunk/") and path in modules
    }


def find_targets(model: Model, names: Sequence[str], key: str) -> tuple[str, ...]:
    """Returns the paths of the kernels that are named: by the last part of the path ("q"), with what tells two stacks
    apart ("decoder/q"), or by a group (`GROUPS`).

    Args:
      key: the config key that the names came from.
    Raises:
      UserError: a name of no kernel.
    """
    known, axes = adaptable(model), flatten(model.axes)
    if not known:
        raise UserError(f"{key}: the {model.family.name} family has no kernels that an adapter may stand beside")
    found: set[str] = set()
    for name in names:
        if name in GROUPS:
            paths = [path for path in known if not GROUPS[name] or set(GROUPS[name]) & set(axes[path])]
        else:
            paths = [path for path, short in known.items() if name in (short, short.split("/")[-1])]
        if not paths:
            short = dict.fromkeys(part for name in known.values() for part in (name.split("/")[-1], name))
            like = _theirs(model, known).get(name) or nearest(name, [*short, *GROUPS])
            guess = "; expected" if like is None else f"; did you mean {like!r}? Expected"
            raise UserError(
                f"{key}: {model.family.name} has no kernel {name!r}{guess} some of {', '.join(short)}, or of "
                f"{', '.join(GROUPS)}"
            )
        found.update(paths)
    return tuple(path for path in known if path in found)


def _theirs(model: Model, known: Mapping[str, str]) -> dict[str, str]:
    """HF's name of each kernel's module, the last part of it -> ours."""
    keys = {rule.param: rule.key.removesuffix(".weight").split(".")[-1] for rule in model.weight_map.rules}
    return {keys[path]: short.split("/")[-1] for path, short in known.items()}
