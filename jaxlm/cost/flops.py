"""Operations of a traced function's matrix products: what a model needs, whatever a compiler makes of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions in the matrix products of one call; `lax.scan` counts once for each turn.

    Args:
      args: arrays or ShapeDtypeStructs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            left, product = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
            total += 2 * math.prod(product) * math.prod(left[i] for i in contract)
            continue
        turns = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        for value in eqn.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                if isinstance(part, ClosedJaxpr):
                    total += turns * _count(part.jaxpr)
                elif isinstance(part, Jaxpr):
                    total += turns * _count(part)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
