"""Which parameters are matrices, told by their logical axes: they are stacked over layers and split into heads, so that
the rank of an array says nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

STACKS = ("layers", "qkv", "gates")
"""Axes along which independent matrices, or vectors, lie side by side."""
TABLES = ("vocab", "positions", "types", "buckets", "classes")
"""Axes whose entries are looked up or chosen between: an embedding, or an output layer."""


class MatrixDims(NamedTuple):
    """The dimensions of a parameter, by what they are to a matrix-wise update rule.

    Attributes:
      dims: those of one matrix or vector; the others count independent ones.
      rows, columns: of a matrix, the dimensions that are contracted with the input, and those of the output: several
        where heads are split. Empty for anything else.
      table: whether it is an embedding or an output layer.
    """

    dims: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    table: bool


def matrix_dims(axes: Sequence[str]) -> MatrixDims:
    """Reads a parameter's axes: kernels name those of their input before those of their output."""
    units: list[tuple[int, ...]] = []
    for dim, name in enumerate(axes):
        if name in STACKS:
            continue
        if name == "head_dim" and dim and axes[dim - 1] in ("heads", "kv_heads"):
            units[-1] += (dim,)
        else:
            units.append((dim,))
    dims = tuple(dim for unit in units for dim in unit)
    rows, columns = units if len(units) == 2 else ((), ())
    return MatrixDims(dims, rows, columns, any(name in TABLES for name in axes))
