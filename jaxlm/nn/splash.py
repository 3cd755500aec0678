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

from jaxlm.nn.blocks import LANES, block_size, fill, ways
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
    rows, length, heads, head_dim = rules.spec(("batch", "length", "act_heads", "head_dim"))
    num_shards = ways(length, rules)
    q_BTNH = q_BTNH * jnp.asarray(scale, q_BTNH.dtype)
    q, query_ids = (fill(x, LANES * num_shards) for x in (q_BTNH, query_BT))
    k, v, key_ids = (fill(x, LANES) for x in (k_BSKH, v_BSKH, key_BS))
    num_heads, length_here = q.shape[2] // ways(heads, rules), q.shape[1] // num_shards
    same_everywhere = not causal and window is None
    if not same_everywhere:
        mask = _mask((q.shape[1], k.shape[1]), causal, window)
    else:
        mask, num_shards = pallas.FullMask((length_here, k.shape[1])), 1
    kernel = pallas.make_splash_mha(
        pallas.MultiHeadMask([mask] * num_heads),
        block_sizes=_blocks(length_here, k.shape[1]),
        head_shards=1,  # all have one mask
        q_seq_shards=num_shards,
        interpret=rules.platform != "tpu",
    )
    kernel_spec = PartitionSpec(None, None if same_everywhere else length)

    def local(kernel, q_BTNH, k_BSKH, v_BSKH, query_BT, key_BS):
        q, k, v = (x.swapaxes(1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
        return jax.vmap(kernel)(q, k, v, pallas.SegmentIds(query_BT, key_BS)).swapaxes(1, 2)

    if rules.mesh is not None:
        queries, keys = PartitionSpec(rows, length, heads, head_dim), PartitionSpec(rows, None, heads, head_dim)
        local = jax.shard_map(
            local,
            mesh=rules.mesh,
            in_specs=(
                kernel.manual_sharding_spec(NamedSharding(rules.mesh, kernel_spec)),
                queries, keys, keys, PartitionSpec(rows, length), PartitionSpec(rows, None),
            ),
            out_specs=queries,
            check_vma=False,  # which the kernel's outputs do not carry
        )  # fmt: skip
    return local(kernel, q, k, v, query_ids, key_ids)[:, : q_BTNH.shape[1]]


def _mask(shape: tuple[int, int], causal: bool, window: int | None) -> Any:
    """The kernel passes over the blocks that this mask leaves empty."""
    if window is None:
        return pallas.CausalMask(shape)
    return pallas.LocalMask(shape, (window - 1, 0 if causal else window - 1), 0)


def _blocks(query_length: int, key_length: int) -> pallas.BlockSizes:
    q, k = block_size(query_length), block_size(key_length)
    return pallas.BlockSizes(block_q=q, block_kv=k, block_q_dkv=q, block_kv_dkv=k, block_q_dq=q, block_kv_dq=k)
