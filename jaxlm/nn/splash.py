"""Splash attention, JAX's TPU kernel: attention block by block, without a T x S array, sharded over the mesh.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention as pallas
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlm.nn.blocks import LANES, Operands, block_size, on_each_device, ways
from jaxlm.nn.remat import ATTENTION
from jaxlm.parallel.sharding import Rules


def fits(num_rows: int, query_length: int, key_length: int, rules: Rules) -> bool:
    """True for rows that the mesh divides and that fill a block on each device; shorter ones gain nothing."""
    rows, length = rules.spec(("batch", "length"))
    filled = query_length >= LANES * ways(length, rules) and key_length >= LANES
    return filled and num_rows % ways(rows, rules) == 0


def splash(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    query_BT: Int[Array, "B T"],
    key_BS: Int[Array, "B S"],
    rules: Rules,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> Float[Array, "B T N H"]:
    """softmax(scale q k^T) v within segments, as `attention.attend`.

    Each device computes its own rows, heads and (where `length` is split) queries, against all keys. Lengths are padded
    with segment 0 to multiples of 128 (times the shards of `length`); outputs of the padding are cut off. On other
    platforms than a TPU the kernel is interpreted: the same numbers, for tests, very slowly.

    Args:
      query_BT, key_BS: segment ids; a query without a key gets a finite mean of all values.
      causal, window: as in `attention.Mask`, query t being in column t.
    """
    length, heads = rules.spec(("length", "act_heads"))
    num_shards = ways(length, rules)
    scaled = q_BTNH * jnp.asarray(scale, q_BTNH.dtype)
    operands = Operands(scaled, k_BSKH, v_BSKH, query_BT, key_BS).filled(rules)
    shape = operands.q_BTNH.shape[1], operands.k_BSKH.shape[1]
    length_here = shape[0] // num_shards
    same_everywhere = not causal and window is None
    if not same_everywhere:
        mask = _mask(shape, causal, window)
    else:
        mask, num_shards = pallas.FullMask((length_here, shape[1])), 1
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * (q_BTNH.shape[2] // ways(heads, rules))),
        block_sizes=_blocks(length_here, shape[1]),
        head_shards=1,  # all have one mask
        q_seq_shards=num_shards,
        interpret=rules.platform != "tpu",
        residual_checkpoint_name=ATTENTION,
    )
    spec = None
    if rules.mesh is not None:
        split = PartitionSpec(None, None if same_everywhere else length)
        spec = kernel.manual_sharding_spec(NamedSharding(rules.mesh, split))

    def run(kernel, q, k, v, query_ids, key_ids):
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        return jax.vmap(kernel)(q, k, v, pallas.SegmentIds(query_ids, key_ids)).swapaxes(1, 2)

    return on_each_device(run, kernel, spec, operands, rules)[:, : q_BTNH.shape[1]]


def _mask(shape: tuple[int, int], causal: bool, window: int | None) -> Any:
    """The kernel passes over the blocks that this mask leaves empty."""
    if window is None:
        return pallas.CausalMask(shape)
    return pallas.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)


def _blocks(query_length: int, key_length: int) -> pallas.BlockSizes:
    q, k = block_size(query_length), block_size(key_length)
    return pallas.BlockSizes(block_q=q, block_kv=k, block_q_dkv=q, block_kv_dkv=k, block_q_dq=q, block_kv_dq=k)
