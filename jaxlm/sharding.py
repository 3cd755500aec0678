"""Meshes, and the rules that lay logical axes on them.

Parameters and activations name their axes (`embed`, `heads`, `batch`, ...); a frozen `Rules` says which mesh axes each
name is split over. `Rules` is handed in explicitly: it is part of what a jitted function closes over, so changing it
can never reuse a stale compilation, and a name without a rule is an error instead of silent replication.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen as nn
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_MESH_AXES = ("data", "fsdp")

# Logical axis -> mesh axes. Parameter axes first, then activation axes.
_REPLICATED = {
    "embed": (), "embed_in": (), "heads": (), "kv_heads": (), "qkv": (), "head_dim": (), "mlp": (), "vocab": (),
    "positions": (), "types": (), "layers": (), "classes": (), "norm": (), "gates": (), "hidden": (),
    "buckets": (),
    "batch": BATCH_MESH_AXES, "length": (), "slots": (), "act_embed": (), "act_heads": (), "act_mlp": (),
}  # fmt: skip
_PRESETS: dict[str, dict[str, tuple[str, ...]]] = {
    "ddp": _REPLICATED,
    "fsdp": {**_REPLICATED, "embed": ("fsdp",)},
    "fsdp_tp": {
        **_REPLICATED,
        "embed": ("fsdp",),
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "mlp": ("tensor",),
        "act_heads": ("tensor",),
        "act_mlp": ("tensor",),
    },
}
_DEFAULT_SIZES = {"ddp": (-1, 1, 1), "fsdp": (1, -1, 1), "fsdp_tp": (1, -1, 2)}


@dataclass(frozen=True)
class Rules:
    """Which mesh axes each logical axis is split over; without a mesh, nothing is constrained."""

    mesh: Mesh | None = None
    table: tuple[tuple[str, tuple[str, ...]], ...] = tuple(_REPLICATED.items())

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """Returns the PartitionSpec of an array with these logical axes; ValueError for a name without a rule."""
        table = dict(self.table)
        parts: list[Any] = []
        used: set[str] = set()
        for name in axes:
            if name is not None and name not in table:
                raise ValueError(f"logical axis {name!r} has no rule; known axes: {', '.join(sorted(table))}")
            mesh_axes = tuple(a for a in (table[name] if name else ()) if a not in used)
            used.update(mesh_axes)
            parts.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
        return PartitionSpec(*parts)

    def sharding(self, axes: Sequence[str | None]) -> NamedSharding:
        if self.mesh is None:
            raise ValueError("these Rules have no mesh")
        return NamedSharding(self.mesh, self.spec(axes))

    @property
    def num_batch_shards(self) -> int:
        """Number of ways the rows of a batch are split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[a] for a in BATCH_MESH_AXES)


def make_mesh(
    preset: str = "ddp",
    *,
    data: int | None = None,
    fsdp: int | None = None,
    tensor: int | None = None,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Returns a mesh with axes data, fsdp, tensor; one size may be -1.

    Args:
      devices: jax devices; absent: all.
    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = list(_DEFAULT_SIZES[preset])
    given = (data, fsdp, tensor)
    if -1 in given:
        sizes = [max(size, 1) for size in sizes]  # the user's -1 takes the place of the preset's
    sizes = [size if own is None else own for size, own in zip(sizes, given, strict=True)]
    written = ", ".join(f"{a}={s}" for a, s in zip(MESH_AXES, sizes, strict=True))
    if any(s == 0 or s < -1 for s in sizes) or sizes.count(-1) > 1:
        raise UserError(f"mesh: expected positive sizes with at most one -1, found {written}")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(
            f"mesh: {written} does not fit {len(devices)} devices; "
            f"the sizes must multiply to {len(devices)} (one may be -1)"
        )
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def make_rules(preset: str, mesh: Mesh | None) -> Rules:
    """Returns the rules of a preset (ddp, fsdp, fsdp_tp) on a mesh."""
    return Rules(mesh, tuple(_PRESETS[preset].items()))


def constrain(x: jax.Array, axes: Sequence[str | None], rules: Rules) -> jax.Array:
    """Pins the layout of an activation inside jit; a no-op where the rules have no mesh."""
    if len(axes) != x.ndim:
        raise ValueError(f"{len(axes)} logical axes {tuple(axes)} for an array of rank {x.ndim}")
    if rules.mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, rules.sharding(axes))


def boxed_axes(boxed: Any) -> Any:
    """Returns the tree of logical-axis tuples of a tree of `nn.Partitioned` boxes."""
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


def is_axes(leaf: Any) -> bool:
    """True for a tuple of logical axis names (a leaf of `Model.axes`)."""
    return isinstance(leaf, tuple) and all(isinstance(name, str) for name in leaf)


def param_shardings(axes: Any, shapes: Any, rules: Rules) -> Any:
    """Returns the NamedSharding of each parameter.

    Raises:
      UserError: a dimension is not divisible by the mesh axes it is split over; names parameter, axis and sizes.
    """

    def one(path, names, struct):
        sharding = rules.sharding(names)
        for dim, (name, part) in enumerate(zip(names, sharding.spec, strict=True)):
            parts = () if part is None else (part,) if isinstance(part, str) else part
            ways = math.prod(sharding.mesh.shape[a] for a in parts)
            if struct.shape[dim] % ways:
                raise UserError(
                    f"parameter {jax.tree_util.keystr(path, simple=True, separator='/')}: axis {name!r} of size "
                    f"{struct.shape[dim]} cannot be split {ways} ways over mesh axis {'+'.join(parts)}; "
                    f"choose a mesh size that divides it"
                )
        return sharding

    return jax.tree_util.tree_map_with_path(one, axes, shapes, is_leaf=is_axes)


def batch_shardings(batch: Mapping[str, Any], rules: Rules, *, leading: int = 0) -> dict[str, NamedSharding]:
    """Returns shardings that split the row axis of each batch array; `leading` unsplit axes come before it."""
    return {
        key: rules.sharding((None,) * leading + ("batch",) + (None,) * (len(value.shape) - leading - 1))
        for key, value in batch.items()
    }
