"""What `nn.flash` computes in one block of queries and one of keys, forward and backward.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim, W lanes of a block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from jaxlm.nn.blocks import LANES
from jaxlm.nn.dropout import hash_places, threshold_and_scale

_MASKED = -0.7 * float(np.finfo(np.float32).max)  # finite: a difference of two is


class Call(NamedTuple):
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


def forward_block(call: Call, numbers, q, k, v, query_ids, key_ids, out, log_sums, most, total, sums):
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


def backward_block(
    call: Call, numbers, q, k, v, query_ids, key_ids, gradient, out, log_sums,
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


def _heads(call: Call, numbers: Any, shape: tuple[int, ...]) -> list[_Head]:
    """The heads in a block [T, W]."""
    together = shape[1] // call.head_dim
    row, first = numbers[2] + pl.program_id(0), numbers[3] + pl.program_id(1) * together
    queries = [(row * call.heads + first + number) * call.query_length + numbers[4] for number in range(together)]
    if together == 1:
        return [_Head(0, queries[0], None)]
    owner = jax.lax.broadcasted_iota(jnp.int32, (1, shape[1]), 1) // call.head_dim
    return [_Head(number, query, owner == number) for number, query in enumerate(queries)]


def _own_keys(call: Call, shape: tuple[int, ...]) -> Callable[[Any], jax.Array]:
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


def _scaled(call: Call, q: Any) -> jax.Array:
    return q[...] * jnp.asarray(call.scale, q.dtype)


def _kept_scale(call: Call) -> float:
    """What the elements that dropout keeps are multiplied by."""
    return threshold_and_scale(call.rate)[1] if call.rate else 1.0


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Multiplies two matrices, summed over one axis of each, in float32."""
    return jax.lax.dot_general(a, b, (((axes[0],), (axes[1],)), ((), ())), preferred_element_type=jnp.float32)


def _column(row: jax.Array) -> jax.Array:
    """[1, T] as [T, 1]. The TPU transposes whole tiles."""
    return jnp.broadcast_to(row, (LANES, row.shape[1])).T[:, :1]


def _seen(call: Call, numbers, query_ids, key_ids, i, j) -> jax.Array:
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


def _kept(call: Call, numbers, head: _Head, shape: tuple[int, ...], i, j) -> jax.Array:
    """Which elements of a block dropout keeps, by `dropout.draws`: by their places among the probabilities
    [B, N, T, S] of all devices, modulo 2^32."""
    start = (head.query + i * shape[0]) * call.key_length + j * shape[1]
    places = jax.lax.broadcasted_iota(jnp.int32, shape, 0) * call.key_length
    places = places + jax.lax.broadcasted_iota(jnp.int32, shape, 1) + start
    draws = hash_places(places.astype(jnp.uint32), *(numbers[n].astype(jnp.uint32) for n in range(2)))
    return draws >= threshold_and_scale(call.rate)[0]


def _meets(call: Call, numbers, query_ids, key_ids, i, j) -> jax.Array:
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
