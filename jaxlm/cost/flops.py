"""Operations of matrix products: those of a traced function, and those of a call of the TPU's attention kernel."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

from jaxlm.cost.hlo import Kernel
from jaxlm.nn.blocks import LANES
from jaxlm.parallel.chips import Chip


def matmul_flops(function: Callable[..., Any], *args: Any) -> int:
    """Multiplications and additions in the matrix products of one call; `lax.scan` counts once for each turn.

    Args:
      args: arrays or ShapeDtypeStructs.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def kernel_flops(name: str, operands: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Returns the multiplications and additions in the matrix products of one call of an attention kernel.

    Whole blocks that a causal mask hides are not computed: half of them. A head narrower than the matrix unit takes as
    long as one that fills it.

    Args:
      name: of the kernel's forward or of a backward pass, as `hlo.kernels` finds it: splash attention's two, or the one
        of `nn.flash`.
      operands: (dtype, shape) of each. Queries [B, N, T, H] and keys [B, K, S, H], or [B, T, N H] and [B, S, K H]
        where `nn.flash` says so by its name, are the first of floating point; the compiler leaves out B where it is 1.
    Raises:
      ValueError: another kernel.
    """
    if name.startswith("rotary"):
        return 0
    products = next((n for part, n in _PRODUCTS.items() if part in name), None)
    if products is None:
        raise ValueError(f"kernel {name!r}: expected one of splash attention's, of nn.flash's or of nn.rotary's")
    queries, keys = [shape for dtype, shape in operands if dtype in ("bf16", "f16", "f32")][:2]
    if "flash_mha" in name:
        causal = "_causal" in name
    else:
        causal = sum(dtype == "s32" for dtype, _ in operands) > 2  # segment ids of both, and then the columns' numbers
    width = -(-queries[-1] // LANES) * LANES
    if side_by_side := re.search(r"_of_(\d+)_", name):  # each head is multiplied in all lanes of its block
        head_dim = int(side_by_side[1])
        width = queries[-1] // head_dim * max(LANES, head_dim)
    return 2 * products * math.prod(queries[:-1]) * keys[-2] * width // (2 if causal else 1)


_PRODUCTS = {"_fwd_": 2, "_dq_": 3, "_dkv_": 4, "_bwd_": 5}
"""Products [T, H] x [H, S], or of such sizes, in each pass: the backward ones compute the scores again."""


def kernel_seconds(kernel: Kernel, chip: Chip) -> float:
    """Seconds of one call of a kernel, of which the compiler says nothing.

    Its matrix products take as long as at the chip's peak, or its operands and results as at the memory's full speed,
    whichever is longer.
    """
    flops = kernel_flops(kernel.name, kernel.operands)
    return max(flops / chip.flops, kernel.bytes / chip.memory_bandwidth)


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
