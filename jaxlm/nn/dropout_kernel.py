"""Attention with dropout of its probabilities, block by block: a TPU kernel, sharded over the mesh.

The draws are those of `dropout.dropout` over the probabilities [B, N, T, S], which are never formed: each block hashes
the places of its own elements, in the forward pass and again in the backward one. The online softmax is that of
FlashAttention (Dao et al., 2022), whose backward pass is written as one kernel here.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim.
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
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlm.nn.blocks import LANES, Operands, block_size, index_of, on_each_device, ways
from jaxlm.nn.dropout import hash_places, key_words, one_draw_decides, threshold_and_scale
from jaxlm.nn.remat import ATTENTION
from jaxlm.parallel.sharding import Rules

LARGEST_GRADIENT = 2**20
"""Numbers of float32, T x H of one head's queries on a device, that the backward pass holds in a core's memory."""
_MASKED = -0.7 * float(np.finfo(np.float32).max)  # finite: a difference of two is


class _Call(NamedTuple):
    """What is static in a call of the kernel."""

    rate: float
    causal: bool
    window: int | None
    heads: int
    """N of all devices, by which places are counted; so are the next two."""
    query_length: int
    key_length: int
    interpret: bool


def fits(shape_BTNH: tuple[int, ...], rate: float, rules: Rules) -> bool:
    """True where the kernel can do what is asked for queries of this shape, beyond what `splash.fits` asks."""
    _, length, _, head_dim = shape_BTNH
    queries = length // ways(rules.spec(("length",))[0], rules)
    return one_draw_decides(rate) and queries * max(head_dim, LANES) <= LARGEST_GRADIENT


def attention_with_dropout(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query_BT: Int[Array, "B T"],
    key_BS: Int[Array, "B S"],
    rules: Rules,
    *,
    scale: float,
    rate: float,
    key: jax.Array,
    causal: bool = False,
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """dropout(softmax(scale q k^T)) v within segments, as `attention.attend`, and with its draws.

    Sharded, filled and interpreted on other platforms as `splash.splash` is.

    Args:
      query_BT, key_BS: segment ids; a query without a key gets a finite mean of values.
      rate, key: of the dropout, as `dropout.dropout` takes them.
      causal, window: as in `attention.Mask`, query t being in column t.
    """
    parts = rules.spec(("batch", "act_heads", "length"))
    operands = Operands(q_BTNH * jnp.asarray(scale, q_BTNH.dtype), k_BSKH, v_BSKH, query_BT, key_BS)
    _, query_length, num_heads, _ = q_BTNH.shape
    call = _Call(rate, causal, window, num_heads, query_length, k_BSKH.shape[1], rules.platform != "tpu")

    def run(two_words, q_BNTH, k_BKSH, v_BKSH, query_BT, key_BS):
        first = [index_of(part, rules) * size for part, size in zip(parts, q_BNTH.shape, strict=False)]
        numbers = jnp.stack([*two_words.view(jnp.int32), *(jnp.asarray(i, jnp.int32) for i in first)])
        return _attention(call, numbers, q_BNTH, k_BKSH, v_BKSH, query_BT[:, None], key_BS[:, None])

    out_BTNH = on_each_device(run, key_words(key), PartitionSpec(), operands.filled(rules), rules)
    return out_BTNH[:, :query_length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(
    call: _Call,
    numbers: jax.Array,
    q_BNTH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    query_B1T: jax.Array,
    key_B1S: jax.Array,
) -> jax.Array:
    """On one device. `numbers`: int32 [5], the key's two words, then its first row, head and query among all."""
    return _forward(call, numbers, q_BNTH, k_BKSH, v_BKSH, query_B1T, key_B1S)[0]


class _Blocks(NamedTuple):
    """The blocks of each array for a grid of rows, heads, blocks of queries and blocks of keys."""

    queries_each: int
    """Columns of a block."""
    keys_each: int
    queries: pl.BlockSpec
    keys: pl.BlockSpec
    query_ids: pl.BlockSpec
    key_ids: pl.BlockSpec
    query_sums: pl.BlockSpec
    """One number a query."""

    @classmethod
    def of(cls, q_BNTH: jax.Array, k_BKSH: jax.Array, *, keys_first: bool) -> _Blocks:
        """With `keys_first`, the grid's third axis is that of keys, and the last that of queries."""
        queries, keys, head_dim = block_size(q_BNTH.shape[2]), block_size(k_BKSH.shape[2]), q_BNTH.shape[3]
        group = q_BNTH.shape[1] // k_BKSH.shape[1]

        def spec(shape: tuple[int | None, ...], index: Callable[..., tuple]) -> pl.BlockSpec:
            if keys_first:
                return pl.BlockSpec(shape, lambda b, n, j, i, _: index(b, n, i, j))
            return pl.BlockSpec(shape, lambda b, n, i, j, _: index(b, n, i, j))

        return cls(
            queries,
            keys,
            queries=spec((None, None, queries, head_dim), lambda b, n, i, j: (b, n, i, 0)),
            keys=spec((None, None, keys, head_dim), lambda b, n, i, j: (b, jax.lax.div(n, group), j, 0)),
            query_ids=spec((None, 1, queries), lambda b, n, i, j: (b, 0, i)),
            key_ids=spec((None, 1, keys), lambda b, n, i, j: (b, 0, j)),
            query_sums=spec((None, None, 1, queries), lambda b, n, i, j: (b, n, 0, i)),
        )


def _forward(call: _Call, numbers, q_BNTH, k_BKSH, v_BKSH, query_B1T, key_B1S):
    rows, num_heads, length, head_dim = q_BNTH.shape
    key_length = k_BKSH.shape[2]
    blocks = _Blocks.of(q_BNTH, k_BKSH, keys_first=False)
    outputs: Any = pl.pallas_call(
        functools.partial(_forward_block, call),
        name=_name("fwd", call),
        out_shape=[
            jax.ShapeDtypeStruct(q_BNTH.shape, q_BNTH.dtype),
            jax.ShapeDtypeStruct((rows, num_heads, 1, length), jnp.float32),
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, num_heads, length // blocks.queries_each, key_length // blocks.keys_each),
            in_specs=[blocks.queries, blocks.keys, blocks.keys, blocks.query_ids, blocks.key_ids],
            out_specs=[blocks.queries, blocks.query_sums],
            scratch_shapes=[
                pltpu.VMEM((blocks.queries_each, width), jnp.float32) for width in (LANES, LANES, head_dim)
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        interpret=call.interpret,
    )(numbers, q_BNTH, k_BKSH, v_BKSH, query_B1T, key_B1S)
    out, log_sums = (checkpoint_name(x, ATTENTION) for x in outputs)
    return out, (numbers, q_BNTH, k_BKSH, v_BKSH, query_B1T, key_B1S, out, log_sums)


def _forward_block(call: _Call, numbers, q, k, v, query_ids, key_ids, out, log_sums, most, total, sums):
    """One block of queries against one of keys; `most`, `total` and `sums` are of the blocks of keys so far."""
    i, j = pl.program_id(2), pl.program_id(3)
    start = _first_place(call, numbers, (q.shape[0], k.shape[0]), i, j)

    @pl.when(j == 0)
    def _():
        most[...] = jnp.full_like(most, _MASKED)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(_meets(call, numbers, query_ids, key_ids, i, j))
    def _():
        logits = _logits(call, numbers, q, k, query_ids, key_ids, i, j)
        before = most[:, :1]
        now = jnp.maximum(before, logits.max(1, keepdims=True))
        weights = jnp.exp(logits - now)
        shrink = jnp.exp(before - now)
        most[...] = jnp.broadcast_to(now, most.shape)
        total[...] = total[...] * shrink + weights.sum(1, keepdims=True)
        kept = jnp.where(_kept(call, numbers, weights.shape, start), weights, 0.0)
        sums[...] = sums[...] * shrink + _dot(kept.astype(v.dtype), v[...], (1, 0))

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        # A block that no query met leaves a sum of zero: rows of padding, which nobody reads.
        whole = jnp.where(total[...] == 0.0, 1.0, total[...])
        scale = threshold_and_scale(call.rate)[1]
        out[...] = (sums[...] * (scale / whole[:, :1])).astype(out.dtype)
        log_sums[...] = (most[...] + jnp.log(whole)).T[:1]


def _backward(call: _Call, residuals, gradient_BNTH):
    numbers, q_BNTH, k_BKSH, v_BKSH, query_B1T, key_B1S, out_BNTH, log_sums_BN1T = residuals
    rows, num_heads, length, head_dim = q_BNTH.shape
    num_kv, key_length = k_BKSH.shape[1:3]
    group = num_heads // num_kv
    blocks = _Blocks.of(q_BNTH, k_BKSH, keys_first=True)
    products = (gradient_BNTH.astype(jnp.float32) * out_BNTH.astype(jnp.float32)).sum(-1)[:, :, None]
    # A head's whole gradient of queries stays in memory while all its blocks add to it.
    whole = pl.BlockSpec((None, None, length, head_dim), lambda b, n, j, i, _: (b, n, 0, 0))
    own_keys = pl.BlockSpec((None, None, blocks.keys_each, head_dim), lambda b, n, j, i, _: (b, n, j, 0))
    per_head = jax.ShapeDtypeStruct((rows, num_heads, key_length, head_dim), k_BKSH.dtype)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_block, call),
        name=_name("bwd", call),
        out_shape=[jax.ShapeDtypeStruct(q_BNTH.shape, jnp.float32), per_head, per_head],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(rows, num_heads, key_length // blocks.keys_each, length // blocks.queries_each),
            in_specs=[
                *(blocks.queries, blocks.keys, blocks.keys, blocks.query_ids, blocks.key_ids),
                *(blocks.queries, blocks.query_sums, blocks.query_sums),
            ],
            out_specs=[whole, own_keys, own_keys],
            scratch_shapes=[pltpu.VMEM((blocks.keys_each, head_dim), jnp.float32) for _ in range(2)],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")),
        interpret=call.interpret,
    )(numbers, q_BNTH, k_BKSH, v_BKSH, query_B1T, key_B1S, gradient_BNTH, log_sums_BN1T, products)
    dk, dv = (x.reshape(rows, num_kv, group, key_length, head_dim).sum(2) if group > 1 else x for x in (dk, dv))
    return None, dq.astype(q_BNTH.dtype), dk, dv, None, None


def _backward_block(
    call: _Call, numbers, q, k, v, query_ids, key_ids, gradient, log_sums, products, dq, dk, dv, dk_sums, dv_sums
):
    """One block of keys against one of queries; the sums are of the blocks of queries so far, `dq` of all."""
    j, i = pl.program_id(2), pl.program_id(3)
    q_block = q.shape[0]
    start = _first_place(call, numbers, (q_block, k.shape[0]), i, j)

    @pl.when((i == 0) & (j == 0))
    def _():
        dq[...] = jnp.zeros_like(dq)

    @pl.when(i == 0)
    def _():
        dk_sums[...] = jnp.zeros_like(dk_sums)
        dv_sums[...] = jnp.zeros_like(dv_sums)

    @pl.when(_meets(call, numbers, query_ids, key_ids, i, j))
    def _():
        weights = jnp.exp(_logits(call, numbers, q, k, query_ids, key_ids, i, j) - _column(log_sums))
        kept = _kept(call, numbers, weights.shape, start)
        scale = threshold_and_scale(call.rate)[1]
        dropped = jnp.where(kept, weights * scale, 0.0)
        dv_sums[...] += _dot(dropped.astype(gradient.dtype), gradient[...], (0, 0))
        of_weights = _dot(gradient[...], v[...], (1, 1))
        of_logits = (dropped * of_weights - weights * _column(products)).astype(q.dtype)
        dk_sums[...] += _dot(of_logits, q[...], (0, 0))
        dq[pl.ds(i * q_block, q_block), :] += _dot(of_logits, k[...], (1, 0))

    @pl.when(i == pl.num_programs(3) - 1)
    def _():
        dk[...] = dk_sums[...].astype(dk.dtype)
        dv[...] = dv_sums[...].astype(dv.dtype)


_attention.defvjp(_forward, _backward)


# In a block.


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Multiplies two matrices, summed over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def _column(row: Any) -> jax.Array:
    """[1, T] as [T, 1]. The TPU transposes whole tiles."""
    return jnp.broadcast_to(row[...], (LANES, row.shape[1])).T[:, :1]


def _distance(numbers: Any, shape: tuple[int, ...], i: jax.Array, j: jax.Array) -> jax.Array:
    """By how many columns each query comes after each key."""
    columns = jax.lax.broadcasted_iota(jnp.int32, shape, 0) - jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return columns + (numbers[4] + i * shape[0] - j * shape[1])


def _logits(call: _Call, numbers, q, k, query_ids, key_ids, i, j) -> jax.Array:
    logits = _dot(q[...], k[...], (1, 1))
    seen = _column(query_ids) == key_ids[...]
    if call.causal or call.window is not None:
        distance = _distance(numbers, logits.shape, i, j)
        if call.causal:
            seen &= distance >= 0
        if call.window is not None:
            seen &= (distance if call.causal else jnp.abs(distance)) < call.window
    return jnp.where(seen, logits, _MASKED)


def _first_place(call: _Call, numbers, shape: tuple[int, ...], i, j) -> jax.Array:
    """Of a block's first element, among the probabilities [B, N, T, S] of all devices, modulo 2^32."""
    row, head = numbers[2] + pl.program_id(0), numbers[3] + pl.program_id(1)
    query = (row * call.heads + head) * call.query_length + numbers[4] + i * shape[0]
    return query * call.key_length + j * shape[1]


def _kept(call: _Call, numbers, shape: tuple[int, ...], start: jax.Array) -> jax.Array:
    """Which elements of a block dropout keeps, from the place of the first on, by `dropout.draws`."""
    places = jax.lax.broadcasted_iota(jnp.int32, shape, 0) * call.key_length
    places = places + jax.lax.broadcasted_iota(jnp.int32, shape, 1) + start
    draws = hash_places(places.astype(jnp.uint32), *(numbers[n].astype(jnp.uint32) for n in range(2)))
    return draws >= threshold_and_scale(call.rate)[0]


def _meets(call: _Call, numbers, query_ids, key_ids, i, j) -> jax.Array:
    """False where no query of a block reads a key of the other, by their columns and by the range of their segments."""
    # Padding, segment 0, comes last in a row.
    last = np.int32(2**31 - 1)
    queries, keys = (jnp.where(ids[...] == 0, last, ids[...]) for ids in (query_ids, key_ids))
    meets = (queries.max() >= keys.min()) & (keys.max() >= queries.min())
    # By how many columns the first query comes after the first key.
    after = numbers[4] + i * query_ids.shape[1] - j * key_ids.shape[1]
    if call.causal:
        meets &= after + query_ids.shape[1] > 0
    if call.window is not None:
        meets &= after - key_ids.shape[1] < call.window - 1
        if not call.causal:
            meets &= after + query_ids.shape[1] > 1 - call.window
    return meets


def _name(part: str, call: _Call) -> str:
    """As `cost.flops` knows the kernel by."""
    return f"dropout_mha_{part}_{'causal' if call.causal else 'whole'}"
