"""Attention block by block, a TPU kernel of our own, sharded over the mesh: for heads narrower than the TPU's 128
lanes, which lie side by side as the dense maps leave them, and for dropout of the probabilities.

The online softmax is that of FlashAttention (Dao et al., 2022), whose backward pass is written as one kernel here. The
draws of dropout are those of `dropout.dropout` over the probabilities [B, N, T, S], which are never formed: each block
hashes the places of its own elements, in the forward pass and again in the backward one.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim, W lanes of a block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from jaxlm.nn.blocks import LANES, Operands, index_of, on_each_device, ways
from jaxlm.nn.dropout import Key, key_words, one_draw_decides
from jaxlm.nn.flash_block import Call
from jaxlm.nn.flash_passes import Apart, SideBySide, attention
from jaxlm.parallel.sharding import Rules

LARGEST_GRADIENT = 8 * 2**20
"""Bytes of a core's memory that the backward pass has for the gradient of one block's queries, T x W: the float32 sums,
and twice what is written of them."""


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
    call = Call(head_dim, group, scale, rate, causal, window, num_heads, *lengths, rules.platform != "tpu")
    lies = SideBySide if side_by_side(num_heads, k_BSKH.shape[2], head_dim, rules) else Apart

    def run(two_words, q_BTNH, k_BSKH, v_BSKH, query_BT, key_BS):
        rows, length, heads, _ = q_BTNH.shape
        first = [index_of(part, rules) * size for part, size in zip(parts, (rows, heads, length), strict=True)]
        numbers = jnp.stack([*two_words.view(jnp.int32), *(jnp.asarray(i, jnp.int32) for i in first)])
        laid = (lies.lay(x) for x in (q_BTNH, k_BSKH, v_BSKH))
        return lies.take(attention(call, lies, numbers, *laid, query_BT[:, None], key_BS[:, None]), head_dim)

    words = jnp.zeros(2, jnp.uint32) if key is None else key_words(key)
    operands = Operands(q_BTNH, k_BSKH, v_BSKH, query_BT, key_BS).filled(rules)
    return on_each_device(run, words, PartitionSpec(), operands, rules)[:, :query_length]
