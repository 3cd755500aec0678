"""Tensors that an import leaves out: each is proven to be held elsewhere, or to be what the network computes anyway."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.hf.tensors import Tensors
from jaxlm.models.weight_map import Plan

_PIECE = 1 << 24  # numbers of a tensor that are compared at a time


def check_redundant(tensors: Tensors, plan: Plan, config: Any) -> None:
    """Reads what the import would not.

    Args:
      config: the family's, which decides what constants the network has.
    Raises:
      UserError: a tensor that is tied to another and has other values, or a constant with values of its own.
    """
    for copy, source in plan.copies:
        if not _equal(tensors, copy, source):
            raise UserError(
                f"{tensors.directory}: tensors {copy} and {source} differ, but config.json ties them; set "
                "tie_word_embeddings to false there if each is meant, or remove the one that is not"
            )
    for key, is_expected in plan.buffers:
        if not is_expected(tensors.read(key, ()), config):
            raise UserError(
                f"{tensors.directory}: tensor {key} has other values than config.json means; remove it if it is not "
                "meant, else the checkpoint is not supported"
            )


def _equal(tensors: Tensors, first: str, second: str) -> bool:
    shape = tensors.shapes[first]
    if shape != tensors.shapes[second]:
        return False
    if not shape:
        return bool(tensors.read(first, ()) == tensors.read(second, ()))
    rows = max(1, _PIECE // max(1, math.prod(shape[1:])))
    starts = range(0, shape[0], rows)
    parts = ((slice(i, min(i + rows, shape[0])), *(slice(size) for size in shape[1:])) for i in starts)
    return all(np.array_equal(tensors.read(first, part), tensors.read(second, part), equal_nan=True) for part in parts)
