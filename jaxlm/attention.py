"""Masks, scaled dot-product attention over kernels, and the cache of step-by-step decoding.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.layers import Compute, Key, dropout, pick


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """Which keys each query reads, said in a few numbers to a column: those of its own segment, or some of them.

    Padding is segment 0 and attends to itself only: no row of the softmax is ever fully masked, and nothing real
    reads it. A pytree of the arrays, which a transformation may replace; the rest is static.
    """

    query_BT: Any
    """int32 [B, T], segment ids."""
    key_BS: Any
    """int32 [B, S]."""
    columns_BT: Any = None
    """int32 [B, T], of the queries among the keys; absent: from 0 on."""
    prefix_BS: Any = None
    """int32 [B, S], 1 where a key belongs to the prefix of its segment, which every query of the segment reads."""
    windowed: Any = None
    """bool [], False lifts the window: for layers that differ in it. Absent: it holds."""
    causal: bool = field(default=False, metadata={"static": True})
    """A query reads no key that comes after it."""
    window: int | None = field(default=None, metadata={"static": True})
    """Most columns that a query sees back, itself included, where `causal` (Beltagy et al., 2020)."""

    def at(self, columns_BQ: Int[Array, "B Q"] | None) -> Mask:
        """Returns the mask of the queries in these columns alone; of all where None."""
        if columns_BQ is None:
            return self
        own = columns_BQ if self.columns_BT is None else pick(self.columns_BT, columns_BQ)
        return replace(self, query_BT=pick(self.query_BT, columns_BQ), columns_BT=own)

    def dense(self) -> Bool[Array, "B 1 T S"]:
        """True where a query reads a key."""
        same = self.query_BT[:, None, :, None] == self.key_BS[:, None, None, :]
        if not self.causal:
            return same
        columns_BT = self.columns_BT
        if columns_BT is None:
            columns_BT = jnp.arange(self.query_BT.shape[1], dtype=jnp.int32)[None]
        keys_S = jnp.arange(self.key_BS.shape[1], dtype=jnp.int32)
        back = columns_BT[:, None, :, None] - keys_S[None, None, None]
        seen = back >= 0
        if self.window is not None:
            near = back < self.window
            seen = seen & (near if self.windowed is None else near | ~self.windowed)
        if self.prefix_BS is not None:
            seen = seen | (self.prefix_BS != 0)[:, None, None, :]
        return same & seen


class KVCache(NamedTuple):
    """The keys and values of all layers for the tokens read so far, in columns of which the first `length` are filled.

    Columns that are not yet filled are of segment 0 and lie behind every query, which a causal mask hides.
    """

    keys: Float[Array, "L B S K H"]
    values: Float[Array, "L B S K H"]
    segment_ids: Int[Array, "B S"]
    prefix: Int[Array, "B S"]
    length: Int[Array, ""]

    def extend(self, segment_ids_BT: Int[Array, "B T"], prefix_BT: Int[Array, "B T"] | None = None) -> KVCache:
        """Takes up T further columns, whose keys and values each layer then puts."""
        start = (0, self.length)
        segment_ids = jax.lax.dynamic_update_slice(self.segment_ids, segment_ids_BT, start)
        prefix = self.prefix if prefix_BT is None else jax.lax.dynamic_update_slice(self.prefix, prefix_BT, start)
        length = self.length + segment_ids_BT.shape[1]
        return self._replace(segment_ids=segment_ids, prefix=prefix, length=length)

    def put(
        self, layer: Int[Array, ""], k_BTKH: Float[Array, "B T K H"], v_BTKH: Float[Array, "B T K H"]
    ) -> tuple[KVCache, Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Puts one layer's keys and values into the last T columns; returns all of that layer's besides."""
        start = (layer, 0, self.length - k_BTKH.shape[1], 0, 0)
        keys, values = (
            jax.lax.dynamic_update_slice(whole, new[None].astype(whole.dtype), start)
            for whole, new in ((self.keys, k_BTKH), (self.values, v_BTKH))
        )
        of_layer = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in (keys, values))
        return self._replace(keys=keys, values=values), *of_layer


def empty_cache(num_layers: int, rows: int, length: int, num_kv_heads: int, head_dim: int, dtype: Any) -> KVCache:
    """A cache that has room for `length` tokens to a row."""
    keys = jnp.zeros((num_layers, rows, length, num_kv_heads, head_dim), dtype)
    marks = jnp.zeros((rows, length), jnp.int32)
    return KVCache(keys, jnp.zeros_like(keys), marks, marks, jnp.zeros((), jnp.int32))


def decoder_mask(
    segment_ids_BT: Int[Array, "B T"],
    cache: KVCache | None,
    *,
    window: int | None = None,
    prefix_BT: Int[Array, "B T"] | None = None,
) -> Mask:
    """The causal mask of the row itself, or over a cache of which these T columns are the last."""
    if cache is None:
        return Mask(segment_ids_BT, segment_ids_BT, prefix_BS=prefix_BT, causal=True, window=window)
    num_new = segment_ids_BT.shape[1]
    columns_T = jnp.arange(num_new, dtype=jnp.int32) + (cache.length - num_new)
    columns_BT = jnp.broadcast_to(columns_T[None], segment_ids_BT.shape)
    return Mask(segment_ids_BT, cache.segment_ids, columns_BT, cache.prefix, causal=True, window=window)


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask: Mask,
    compute: Compute,
    *,
    bias: Float[Array, "1 N T S"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    key: Key = None,
) -> Float[Array, "B T N H"]:
    """softmax(scale q k^T + bias) v (Vaswani et al., 2017), the softmax in float32.

    Args:
      k_BSKH, v_BSKH: of K heads, each read by N / K query heads (grouped-query attention; Ainslie et al., 2023).
      compute: its `attention` names the kernel: "xla", "cudnn", or "auto": cuDNN on a GPU where it takes the dtype and
        head size, else XLA. Kernels that never form the probabilities cannot drop them out, so with dropout "auto"
        computes them openly.
      bias: added to the logits (T5's relative positions).
      scale: of the logits; absent: 1 / sqrt(H).
      dropout_rate, key: dropout of the attention probabilities; none without a key.
    Raises:
      UserError: "cudnn" together with attention dropout.
    """
    drops = key is not None and dropout_rate > 0.0
    if compute.attention == "cudnn" and drops:
        raise UserError(
            "model.attention=cudnn cannot drop out attention probabilities: set model.attention_dropout=0 or "
            "model.attention=auto"
        )
    if not drops:
        fits = compute.attention == "auto" and bias is None and _cudnn_fits(q_BTNH, compute.rules.platform)
        kernel = "cudnn" if compute.attention == "cudnn" or fits else "xla"
        with jax.numpy_dtype_promotion("standard"):  # inside, JAX itself mixes half precision with float32
            return jax.nn.dot_product_attention(
                q_BTNH, k_BSKH, v_BSKH, bias=bias, mask=mask.dense(), scale=scale, implementation=kernel
            )
    num_heads, head_dim = q_BTNH.shape[2:]
    if k_BSKH.shape[2] != num_heads:
        groups = num_heads // k_BSKH.shape[2]
        k_BSKH, v_BSKH = (jnp.repeat(x, groups, axis=2) for x in (k_BSKH, v_BSKH))
    q_BTNH = q_BTNH * jnp.asarray(head_dim**-0.5 if scale is None else scale, q_BTNH.dtype)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSKH, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    logits = jnp.where(mask.dense(), logits, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(logits, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", dropout(probs, dropout_rate, key), v_BSKH)


def _cudnn_fits(q_BTNH: jax.Array, platform: str) -> bool:
    """cuDNN's fused attention takes half precision, even lengths, and a head size that is a multiple of 8 up to 128."""
    _, length, _, head_dim = q_BTNH.shape
    half = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return platform == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0
