"""Which parameters are matrices, told by their logical axes: they are stacked over layers and split into heads, so that
the rank of an array says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

STACKS = ("layers", "qkv", "gates")
"""Axes along which independent matrices, or vectors, lie side by side."""
TABLES = ("vocab", "positions", "types", "buckets", "classes")
"""Axes whose entries are looked up or chosen between: an embedding, or an output layer."""


class Blocks(NamedTuple):
    """The dimensions of a parameter, by what they are to a matrix-wise update rule.

    Attributes:
      each: those of one matrix or vector; the others count independent ones.
      rows, columns: of a matrix, the dimensions that are contracted with the input, and those of the output: several
        where heads are split. Empty for anything else.
      table: whether it is an embedding or an output layer.
    """

    each: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    table: bool


def blocks_of(axes: Sequence[str]) -> Blocks:
    """Reads a parameter's axes: kernels name those of their input before those of their output."""
    units: list[tuple[int, ...]] = []
    for dim, name in enumerate(axes):
        if name in STACKS:
            continue
        if name == "head_dim" and dim and axes[dim - 1] in ("heads", "kv_heads"):
            units[-1] += (dim,)
        else:
            units.append((dim,))
    each = tuple(dim for unit in units for dim in unit)
    rows, columns = units if len(units) == 2 else ((), ())
    return Blocks(each, rows, columns, any(name in TABLES for name in axes))
