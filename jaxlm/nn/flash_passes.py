"""The forward and the backward pass of `nn.flash` on one device: how arrays lie, and over which blocks a kernel runs.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim, W lanes of a block.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.nn.blocks import LANES, block_size
from jaxlm.nn.flash_block import Call, backward_block, forward_block
from jaxlm.nn.remat import ATTENTION


class SideBySide:
    """Arrays [B, T, N H], whose blocks hold one head, or so many as 128 lanes have room for."""

    @staticmethod
    def lay(x_BTNH: jax.Array) -> jax.Array:
        return x_BTNH.reshape(*x_BTNH.shape[:2], -1)

    @staticmethod
    def take(x: jax.Array, head_dim: int) -> jax.Array:
        return x.reshape(*x.shape[:2], -1, head_dim)

    @staticmethod
    def sizes(x: jax.Array, head_dim: int) -> tuple[int, int, int, int]:
        """Rows, length, blocks of lanes, lanes of a block."""
        rows, length, lanes = x.shape
        each = max(LANES, head_dim)
        return rows, length, lanes // each, each

    @staticmethod
    def block(columns: int, lanes: int) -> tuple[int | None, ...]:
        return (None, columns, lanes)

    @staticmethod
    def index(row: Any, block: Any, column: Any) -> tuple:
        return (row, column, block)


class Apart:
    """Arrays [B, N, T, H], whose blocks hold one head."""

    @staticmethod
    def lay(x_BTNH: jax.Array) -> jax.Array:
        return x_BTNH.swapaxes(1, 2)

    @staticmethod
    def take(x: jax.Array, head_dim: int) -> jax.Array:
        return x.swapaxes(1, 2)

    @staticmethod
    def sizes(x: jax.Array, head_dim: int) -> tuple[int, int, int, int]:
        """Rows, length, heads, lanes of a head."""
        rows, heads, length, lanes = x.shape
        return rows, length, heads, lanes

    @staticmethod
    def block(columns: int, lanes: int) -> tuple[int | None, ...]:
        return (None, None, columns, lanes)

    @staticmethod
    def index(row: Any, block: Any, column: Any) -> tuple:
        return (row, block, column, 0)


_Lies = type[SideBySide] | type[Apart]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def attention(
    call: Call,
    lies: _Lies,
    numbers: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    query_B1T: jax.Array,
    key_B1S: jax.Array,
) -> jax.Array:
    """On one device. `numbers`: int32 [5], the key's two words, then its first row, head and query among all."""
    return _forward(call, lies, numbers, q, k, v, query_B1T, key_B1S)[0]


class _Blocks(NamedTuple):
    """The blocks of each array for a grid of rows, blocks of lanes, blocks of queries and blocks of keys."""

    rows: int
    groups: int
    """Blocks of lanes, of queries."""
    lanes: int
    together: int
    """Heads in a block."""
    query_length: int
    key_length: int
    queries_each: int
    """Columns of a block."""
    keys_each: int
    queries: pl.BlockSpec
    keys: pl.BlockSpec
    query_ids: pl.BlockSpec
    key_ids: pl.BlockSpec
    log_sums: pl.BlockSpec
    """One number a head and query."""

    @classmethod
    def of(cls, call: Call, lies: _Lies, q: jax.Array, k: jax.Array, *, keys_first: bool) -> _Blocks:
        """With `keys_first`, the grid's third axis is that of keys, and the last that of queries."""
        rows, query_length, groups, lanes = lies.sizes(q, call.head_dim)
        _, key_length, kv_groups, _ = lies.sizes(k, call.head_dim)
        queries, keys, shared = block_size(query_length), block_size(key_length), groups // kv_groups
        together = lanes // call.head_dim

        def spec(shape: tuple[int | None, ...], index: Callable[..., tuple]) -> pl.BlockSpec:
            if keys_first:
                return pl.BlockSpec(shape, lambda b, n, j, i, _: index(b, n, i, j))
            return pl.BlockSpec(shape, lambda b, n, i, j, _: index(b, n, i, j))

        return cls(
            *(rows, groups, lanes, together, query_length, key_length, queries, keys),
            queries=spec(lies.block(queries, lanes), lambda b, n, i, j: lies.index(b, n, i)),
            keys=spec(lies.block(keys, lanes), lambda b, n, i, j: lies.index(b, jax.lax.div(n, shared), j)),
            query_ids=spec((None, 1, queries), lambda b, n, i, j: (b, 0, i)),
            key_ids=spec((None, 1, keys), lambda b, n, i, j: (b, 0, j)),
            log_sums=spec((None, together, 1, queries), lambda b, n, i, j: (b, n, 0, i)),
        )


def _forward(call: Call, lies: _Lies, numbers, q, k, v, query_B1T, key_B1S):
    blocks = _Blocks.of(call, lies, q, k, keys_first=False)
    heads, queries = blocks.groups * blocks.together, blocks.queries_each
    outputs: Any = pl.pallas_call(
        functools.partial(forward_block, call),
        name=_name("fwd", call, lies),
        out_shape=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((blocks.rows, heads, 1, blocks.query_length), jnp.float32),
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(blocks.rows, blocks.groups, blocks.query_length // queries, blocks.key_length // blocks.keys_each),
            in_specs=[blocks.queries, blocks.keys, blocks.keys, blocks.query_ids, blocks.key_ids],
            out_specs=[blocks.queries, blocks.log_sums],
            scratch_shapes=[
                *(pltpu.VMEM((blocks.together, queries, LANES), jnp.float32) for _ in range(2)),
                pltpu.VMEM((queries, blocks.lanes), jnp.float32),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=call.interpret,
    )(numbers, q, k, v, query_B1T, key_B1S)
    out, log_sums = (checkpoint_name(x, ATTENTION) for x in outputs)
    return out, (numbers, q, k, v, query_B1T, key_B1S, out, log_sums)


def _backward(call: Call, lies: _Lies, residuals, gradient):
    numbers, q, k, v, query_B1T, key_B1S, out, log_sums = residuals
    blocks = _Blocks.of(call, lies, q, k, keys_first=True)
    # A block's whole gradient of queries stays in memory while all blocks of keys add to it.
    whole = pl.BlockSpec(lies.block(blocks.query_length, blocks.lanes), lambda b, n, j, i, _: lies.index(b, n, 0))
    own_keys = pl.BlockSpec(lies.block(blocks.keys_each, blocks.lanes), lambda b, n, j, i, _: lies.index(b, n, j))
    per_head = jax.ShapeDtypeStruct((*q.shape[:-2], blocks.key_length, q.shape[-1]), k.dtype)
    dq, dk, dv = pl.pallas_call(
        functools.partial(backward_block, call),
        name=_name("bwd", call, lies),
        out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), per_head, per_head],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(
                *(blocks.rows, blocks.groups),
                *(blocks.key_length // blocks.keys_each, blocks.query_length // blocks.queries_each),
            ),
            in_specs=[
                *(blocks.queries, blocks.keys, blocks.keys, blocks.query_ids, blocks.key_ids),
                *(blocks.queries, blocks.queries, blocks.log_sums),
            ],
            out_specs=[whole, own_keys, own_keys],
            scratch_shapes=[
                pltpu.VMEM((blocks.query_length, blocks.lanes), jnp.float32),
                *(pltpu.VMEM((blocks.keys_each, blocks.lanes), jnp.float32) for _ in range(2)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        interpret=call.interpret,
    )(numbers, q, k, v, query_B1T, key_B1S, gradient, out, log_sums)
    dk, dv = (_sum_groups(call, x, k) for x in (dk, dv))
    return None, dq, dk, dv, None, None


attention.defvjp(_forward, _backward)


def _sum_groups(call: Call, x: jax.Array, k: jax.Array) -> jax.Array:
    """The gradient of keys or values, each read by several heads, of which x has one each."""
    if call.group == 1:
        return x
    if x.ndim == 4:  # [B, N, S, H]
        return x.reshape(*k.shape[:2], call.group, *k.shape[2:]).sum(2)
    if call.head_dim % LANES == 0:
        rows, length, _ = x.shape
        return x.reshape(rows, length, -1, call.group, call.head_dim).sum(3).reshape(k.shape)
    # The matrix units add up, since axes of one narrow head would be padded.
    reads = np.arange(x.shape[2]) // (call.head_dim * call.group) * call.head_dim
    to = reads + np.arange(x.shape[2]) % call.head_dim
    adds = jnp.asarray(to[:, None] == np.arange(k.shape[2]), x.dtype)
    dims, exact = (((2,), (0,)), ((), ())), jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(x, adds, dims, precision=exact, preferred_element_type=jnp.float32).astype(k.dtype)


def _name(part: str, call: Call, lies: _Lies) -> str:
    """As `cost.flops` knows the kernel by."""
    of = f"_of_{call.head_dim}" if lies is SideBySide else ""
    return f"flash_mha_{part}{of}_{'causal' if call.causal else 'whole'}"
