"""Meshes, and the rules that lay logical axes on them.

Parameters and activations name their axes (`embed`, `heads`, `batch`, ...); a frozen `Rules` says which mesh axes each
name is split over. `Rules` is handed in explicitly: it is part of what a jitted function closes over, so changing it
can never reuse a stale compilation, and a name without a rule is an error instead of silent replication.

There is one table of rules. A preset is a name for sizes: what lies on a mesh axis of size 1 is whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxlm.errors import UserError
from jaxlm.fields import Field, token_arrays

MESH_AXES = ("data", "fsdp", "context", "tensor")
BATCH_MESH_AXES = ("data", "fsdp")

# Logical axis -> mesh axes. Parameter axes first, then activation axes. The devices that share a row (`context`) share
# the parameters, too.
TABLE: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp", "context"), "vocab": ("tensor",), "heads": ("tensor",), "kv_heads": ("tensor",),
    "mlp": ("tensor",), "embed_in": (), "qkv": (), "head_dim": (), "positions": (), "types": (), "layers": (),
    "classes": (), "norm": (), "gates": (), "hidden": (), "buckets": (), "rank": (),
    "batch": BATCH_MESH_AXES, "length": ("context",), "kv_length": (), "slots": (), "act_embed": (),
    "act_heads": ("tensor",), "act_mlp": ("tensor",), "act_vocab": ("tensor",),
}  # fmt: skip
# Whole where the mesh does not divide them: nobody chooses a vocabulary for its divisors, and a decoder reads its
# prompts and tokens at any length. Any other dimension that does not divide is an error.
SOFT = ("vocab", "act_vocab", "length")


@dataclass(frozen=True)
class Rules:
    """Which mesh axes each logical axis is split over; without a mesh, nothing is constrained."""

    mesh: Mesh | None = None
    table: tuple[tuple[str, tuple[str, ...]], ...] = tuple(TABLE.items())
    description: str = field(default="", compare=False)
    """The mesh in words, and what speaks for it."""

    def spec(self, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> PartitionSpec:
        """Returns the PartitionSpec of an array with these logical axes, less mesh axes of size 1.

        Args:
          shape: of the array; `SOFT` axes that do not divide are then whole.
        Raises:
          ValueError: a name without a rule.
        """
        table = dict(self.table)
        parts: list[Any] = []
        used: set[str] = set()
        for dim, name in enumerate(axes):
            if name is not None and name not in table:
                raise ValueError(f"logical axis {name!r} has no rule; known axes: {', '.join(sorted(table))}")
            mesh_axes = tuple(a for a in (table[name] if name else ()) if a not in used and self.size(a) != 1)
            if name in SOFT and shape and self.mesh and shape[dim] % math.prod(map(self.size, mesh_axes)):
                mesh_axes = ()
            used.update(mesh_axes)
            parts.append(None if not mesh_axes else mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes)
        return PartitionSpec(*parts)

    def sharding(self, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
        if self.mesh is None:
            raise ValueError("these Rules have no mesh")
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def size(self, mesh_axis: str) -> int:
        """Devices along a mesh axis; 0 without a mesh."""
        return 0 if self.mesh is None else self.mesh.shape[mesh_axis]

    @property
    def platform(self) -> str:
        """What the mesh's devices are (cpu, gpu, tpu), which ahead of time need not be what this process has."""
        platform = jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform
        return "gpu" if platform in ("cuda", "rocm") else platform

    @property
    def num_batch_shards(self) -> int:
        """Number of ways the rows of a batch are split."""
        return 1 if self.mesh is None else math.prod(self.mesh.shape[a] for a in BATCH_MESH_AXES)


def constrain(x: jax.Array | np.ndarray, axes: Sequence[str | None], rules: Rules) -> jax.Array:
    """Pins the layout of an activation inside jit; a no-op where the rules have no mesh."""
    if len(axes) != x.ndim:
        raise ValueError(f"{len(axes)} logical axes {tuple(axes)} for an array of rank {x.ndim}")
    if rules.mesh is None:
        return jnp.asarray(x)
    return jax.lax.with_sharding_constraint(x, rules.sharding(axes, x.shape))


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
        sharding = rules.sharding(names, struct.shape)
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


def batch_shardings(
    batch: Mapping[str, Any], rules: Rules, fields: Iterable[Field] = (), *, leading: int = 0
) -> dict[str, NamedSharding]:
    """Returns the layout of a packed batch: rows over data and fsdp, the columns of token arrays over context.

    Args:
      fields: the task's; arrays that are neither a stream's nor a field with a value for each token are split by rows
        alone.
      leading: number of unsplit axes before the rows.
    Raises:
      UserError: the columns of `tokens` do not divide by the context axis.
    """
    ways = rules.size("context")
    columns = batch["tokens"].shape[leading + 1] if "tokens" in batch else 0
    if ways > 1 and columns % ways:
        raise UserError(
            f"mesh.context={ways}: rows of {columns} columns cannot be split {ways} ways; make data.row_length "
            f"(labelled rows) or data.max_length (corpora) a multiple of {ways}"
        )
    by_token = token_arrays(fields)

    def one(name: str, shape: Sequence[int]) -> NamedSharding:
        axes: list[str | None] = [*(None,) * leading, "batch", *(None,) * (len(shape) - leading - 1)]
        if name in by_token:
            axes[leading + 1] = "length"
        return rules.sharding(axes, shape)

    return {name: one(name, value.shape) for name, value in batch.items()}
