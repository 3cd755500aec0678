"""Attention block by block, a TPU kernel of our own, sharded over the mesh: for heads narrower than the TPU's 128
lanes, which lie side by side as the dense maps leave them, and for dropout of the probabilities.

The online softmax is that of FlashAttention (Dao et al., 2022), whose backward pass is written as one kernel here. The
draws of dropout are those of `dropout.dropout` over the probabilities [B, N, T, S], which are never formed: each block
hashes the places of its own elements, in the forward pass and again in the backward one.

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
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlm.nn.blocks import LANES, Operands, block_size, index_of, on_each_device, ways
from jaxlm.nn.dropout import Key, hash_places, key_words, one_draw_decides, threshold_and_scale
from jaxlm.nn.remat import ATTENTION
from jaxlm.parallel.sharding import Rules

LARGEST_GRADIENT = 8 * 2**20
"""Bytes of a core's memory that the backward pass has for the gradient of one block's queries, T x W: the float32 sums,
and twice what is written of them."""
_MASKED = -0.7 * float(np.finfo(np.float32).max)  # finite: a difference of two is


class _Call(NamedTuple):
    """What is static in a call of the kernel."""

    head_dim: int
    group: int
    """Heads that read the same keys."""
    scale: float
    rate: float
    causal: bool
    window: int | None
    heads: int
    """N of all devices, by which places are counted; so are the next two."""
    query_length: int
    key_length: int
    interpret: bool


def fits(q_BTNH: jax.Array, rate: float, rules: Rules) -> bool:
    """True where the kernel can do what is asked for these queries, beyond what `splash.fits` asks."""
    _, length, _, head_dim = q_BTNH.shape
    queries = length // ways(rules.spec(("length",))[0], rules)
    gradient = queries * max(head_dim, LANES) * (4 + 2 * q_BTNH.dtype.itemsize)
    return (rate == 0.0 or one_draw_decides(rate)) and gradient <= LARGEST_GRADIENT


def side_by_side(num_heads: int, num_kv: int, head_dim: int, rules: Rules) -> bool:
    """True for heads of which whole blocks of lanes lie on each device: they need neither padding nor transposition.
    The query heads of a block read one head of keys, or each its own."""
    over = ways(rules.spec(("act_heads",))[0], rules)
    if LANES % head_dim and head_dim % LANES or any(n // over * head_dim % LANES for n in (num_heads, num_kv)):
        return False
    return num_heads == num_kv or num_heads // num_kv % max(1, LANES // head_dim) == 0


def flash(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query_BT: Int[Array, "B T"],
    key_BS: Int[Array, "B S"],
    rules: Rules,
    *,
    scale: float,
    rate: float = 0.0,
    key: Key = None,
    causal: bool = False,
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """dropout(softmax(scale q k^T)) v within segments, as `attention.attend`, and with its draws.

    Sharded, filled and interpreted on other platforms as `splash.splash` is.

    Args:
      query_BT, key_BS: segment ids; a query without a key gets a finite mean of values.
      rate, key: of the dropout, as `dropout.dropout` takes them; no key: none.
      causal, window: as in `attention.Mask`, query t being in column t.
    """
    parts = rules.spec(("batch", "act_heads", "length"))
    _, query_length, num_heads, head_dim = q_BTNH.shape
    rate = rate if key is not None else 0.0
    lengths = query_length, k_BSKH.shape[1]
    group = num_heads // k_BSKH.shape[2]
    call = _Call(head_dim, group, scale, rate, causal, window, num_heads, *lengths, rules.platform != "tpu")
    lies = _SideBySide if side_by_side(num_heads, k_BSKH.shape[2], head_dim, rules) else _Apart

    def run(two_words, q_BTNH, k_BSKH, v_BSKH, query_BT, key_BS):
        rows, length, heads, _ = q_BTNH.shape
        first = [index_of(part, rules) * size for part, size in zip(parts, (rows, heads, length), strict=True)]
        numbers = jnp.stack([*two_words.view(jnp.int32), *(jnp.asarray(i, jnp.int32) for i in first)])
        laid = (lies.lay(x) for x in (q_BTNH, k_BSKH, v_BSKH))
        return lies.take(_attention(call, lies, numbers, *laid, query_BT[:, None], key_BS[:, None]), head_dim)

    words = jnp.zeros(2, jnp.uint32) if key is None or not rate else key_words(key)
    operands = Operands(q_BTNH, k_BSKH, v_BSKH, query_BT, key_BS).filled(rules)
    return on_each_device(run, words, PartitionSpec(), operands, rules)[:, :query_length]


class _SideBySide:
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


class _Apart:
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


_Lies = type[_SideBySide] | type[_Apart]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(
    call: _Call,
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
    def of(cls, call: _Call, lies: _Lies, q: jax.Array, k: jax.Array, *, keys_first: bool) -> _Blocks:
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


def _forward(call: _Call, lies: _Lies, numbers, q, k, v, query_B1T, key_B1S):
    blocks = _Blocks.of(call, lies, q, k, keys_first=False)
    heads, queries = blocks.groups * blocks.together, blocks.queries_each
    outputs: Any = pl.pallas_call(
        functools.partial(_forward_block, call),
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


def _forward_block(call: _Call, numbers, q, k, v, query_ids, key_ids, out, log_sums, most, total, sums):
    """One block of queries against one of keys; `most`, `total` and `sums` are of the blocks of keys so far."""
    i, j = pl.program_id(2), pl.program_id(3)
    heads, own = _heads(call, numbers, q.shape), _own_keys(call, k.shape)

    @pl.when(j == 0)
    def _():
        most[...] = jnp.full_like(most, _MASKED)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(_meets(call, numbers, query_ids, key_ids, i, j))
    def _():
        seen = _seen(call, numbers, query_ids, key_ids, i, j)
        added, keys, values = sums[...], own(k), own(v)
        for head in heads:
            logits = jnp.where(seen, _dot(head.only(_scaled(call, q)), keys, (1, 1)), _MASKED)
            before = most[head.number, :, :1]
            now = jnp.maximum(before, logits.max(1, keepdims=True))
            weights = jnp.exp(logits - now)
            shrink = jnp.exp(before - now)
            most[head.number] = jnp.broadcast_to(now, most.shape[1:])
            total[head.number] = total[head.number] * shrink + weights.sum(1, keepdims=True)
            if call.rate:
                weights = jnp.where(_kept(call, numbers, head, weights.shape, i, j), weights, 0.0)
            added = head.put(added * shrink + _dot(weights.astype(v.dtype), values, (1, 0)), added)
        sums[...] = added

    @pl.when(j == pl.num_programs(3) - 1)
    def _():
        found = sums[...]
        for head in heads:
            # A block that no query met leaves a sum of zero: rows of padding, which nobody reads.
            whole = jnp.where(total[head.number] == 0.0, 1.0, total[head.number])
            found = head.put(found * (_kept_scale(call) / whole[:, :1]), found)
            log_sums[head.number] = (most[head.number] + jnp.log(whole)).T[:1]
        out[...] = found.astype(out.dtype)


def _backward(call: _Call, lies: _Lies, residuals, gradient):
    numbers, q, k, v, query_B1T, key_B1S, out, log_sums = residuals
    blocks = _Blocks.of(call, lies, q, k, keys_first=True)
    # A block's whole gradient of queries stays in memory while all blocks of keys add to it.
    whole = pl.BlockSpec(lies.block(blocks.query_length, blocks.lanes), lambda b, n, j, i, _: lies.index(b, n, 0))
    own_keys = pl.BlockSpec(lies.block(blocks.keys_each, blocks.lanes), lambda b, n, j, i, _: lies.index(b, n, j))
    per_head = jax.ShapeDtypeStruct((*q.shape[:-2], blocks.key_length, q.shape[-1]), k.dtype)
    dq, dk, dv = pl.pallas_call(
        functools.partial(_backward_block, call),
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


def _backward_block(
    call: _Call, numbers, q, k, v, query_ids, key_ids, gradient, out, log_sums,
    dq, dk, dv, dq_sums, dk_sums, dv_sums,
):  # fmt: skip
    """One block of keys against one of queries; the sums are of the blocks of queries so far, `dq_sums` of all."""
    j, i = pl.program_id(2), pl.program_id(3)
    heads, own, q_block = _heads(call, numbers, q.shape), _own_keys(call, k.shape), q.shape[0]
    rows = pl.ds(i * q_block, q_block)
    last_queries, last_keys = i == pl.num_programs(3) - 1, j == pl.num_programs(2) - 1

    @pl.when((i == 0) & (j == 0))
    def _():
        dq_sums[...] = jnp.zeros_like(dq_sums)

    @pl.when(i == 0)
    def _():
        dk_sums[...] = jnp.zeros_like(dk_sums)
        dv_sums[...] = jnp.zeros_like(dv_sums)

    @pl.when(_meets(call, numbers, query_ids, key_ids, i, j))
    def _():
        seen = _seen(call, numbers, query_ids, key_ids, i, j)
        scaled, keys, values = _scaled(call, q), own(k), own(v)
        of_out = gradient[...].astype(jnp.float32) * out[...].astype(jnp.float32)
        for head in heads:
            logits = jnp.where(seen, _dot(head.only(scaled), keys, (1, 1)), _MASKED)
            weights = jnp.exp(logits - _column(log_sums[head.number]))
            dropped = weights
            if call.rate:
                kept = _kept(call, numbers, head, weights.shape, i, j)
                dropped = jnp.where(kept, weights * _kept_scale(call), 0.0)
            own_gradient = head.only(gradient[...])
            dv_sums[...] += _dot(dropped.astype(gradient.dtype), own_gradient, (0, 0))
            of_weights = _dot(own_gradient, values, (1, 1))
            products = head.only(of_out).sum(1, keepdims=True)
            of_logits = (dropped * of_weights - weights * products).astype(q.dtype)
            dk_sums[...] += _dot(of_logits, head.only(scaled), (0, 0))
            dq_sums[rows, :] += head.only(_dot(of_logits, keys, (1, 0)))

    @pl.when(last_queries)
    def _():
        dk[...] = dk_sums[...].astype(dk.dtype)
        dv[...] = dv_sums[...].astype(dv.dtype)

    @pl.when(last_queries & last_keys)
    def _():
        dq[...] = (dq_sums[...] * call.scale).astype(dq.dtype)


_attention.defvjp(_forward, _backward)


def _sum_groups(call: _Call, x: jax.Array, k: jax.Array) -> jax.Array:
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


# In a block.


class _Head(NamedTuple):
    """One of the heads whose lanes a block holds."""

    number: int
    """Among them."""
    query: jax.Array
    """The number of its first query on this device, among those of all rows and heads [B, N, T] of all devices."""
    lanes: jax.Array | None
    """Which are its own, bool [1, W]; None: all."""

    def only(self, x: jax.Array) -> jax.Array:
        """x [T, W], zero in the lanes of other heads."""
        return x if self.lanes is None else jnp.where(self.lanes, x, jnp.zeros_like(x))

    def put(self, x: jax.Array, others: jax.Array) -> jax.Array:
        """x in its own lanes, `others` elsewhere."""
        return x if self.lanes is None else jnp.where(self.lanes, x, others)


def _heads(call: _Call, numbers: Any, shape: tuple[int, ...]) -> list[_Head]:
    """The heads in a block [T, W]."""
    together = shape[1] // call.head_dim
    row, first = numbers[2] + pl.program_id(0), numbers[3] + pl.program_id(1) * together
    queries = [(row * call.heads + first + number) * call.query_length + numbers[4] for number in range(together)]
    if together == 1:
        return [_Head(0, queries[0], None)]
    owner = jax.lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1) // call.head_dim
    return [_Head(number, query, owner == number) for number, query in enumerate(queries)]


def _own_keys(call: _Call, shape: tuple[int, ...]) -> Callable[[Any], jax.Array]:
    """How a block [S, W] of keys or values is read: where the block of queries reads one head of it, that stands in the
    lanes of each of its heads."""
    together = shape[1] // call.head_dim
    if call.group == 1 or together == 1:
        return lambda block: block[...]
    number = jax.lax.rem(jax.lax.div(pl.program_id(1) * together, call.group), together)
    owner = jax.lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1) // call.head_dim

    def own(block: Any) -> jax.Array:
        one = jnp.where(owner == number, block[...].astype(jnp.float32), 0.0)
        lanes = call.head_dim
        while lanes < shape[1]:
            one, lanes = one + pltpu.roll(one, lanes, 1), 2 * lanes
        return one.astype(block.dtype)

    return own


def _scaled(call: _Call, q: Any) -> jax.Array:
    return q[...] * jnp.asarray(call.scale, q.dtype)


def _kept_scale(call: _Call) -> float:
    """What the elements that dropout keeps are multiplied by."""
    return threshold_and_scale(call.rate)[1] if call.rate else 1.0


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Multiplies two matrices, summed over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def _column(row: jax.Array) -> jax.Array:
    """[1, T] as [T, 1]. The TPU transposes whole tiles."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _seen(call: _Call, numbers, query_ids, key_ids, i, j) -> jax.Array:
    """Which keys of a block each query reads, bool [T, S]."""
    seen = _column(query_ids[...]) == key_ids[...]
    if call.causal or call.window is not None:
        distance = _distance(numbers, seen.shape, i, j)
        if call.causal:
            seen &= distance >= 0
        if call.window is not None:
            seen &= (distance if call.causal else jnp.abs(distance)) < call.window
    return seen


def _distance(numbers: Any, shape: tuple[int, ...], i: jax.Array, j: jax.Array) -> jax.Array:
    """By how many columns each query comes after each key."""
    columns = jax.lax.broadcasted_iota(jnp.int32, shape, 0) - jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    return columns + (numbers[4] + i * shape[0] - j * shape[1])


def _kept(call: _Call, numbers, head: _Head, shape: tuple[int, ...], i, j) -> jax.Array:
    """Which elements of a block dropout keeps, by `dropout.draws`: by their places among the probabilities
    [B, N, T, S] of all devices, modulo 2^32."""
    start = (head.query + i * shape[0]) * call.key_length + j * shape[1]
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


def _name(part: str, call: _Call, lies: _Lies) -> str:
    """As `cost.flops` knows the kernel by."""
    of = f"_of_{call.head_dim}" if lies is _SideBySide else ""
    return f"flash_mha_{part}{of}_{'causal' if call.causal else 'whole'}"
