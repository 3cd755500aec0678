"""Masks, scaled dot-product attention over kernels, and the cache of step-by-step decoding.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim, L layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.layers import Key, dropout


def segment_mask(query_BT: Int[Array, "B T"], key_BS: Int[Array, "B S"]) -> Bool[Array, "B 1 T S"]:
    """True where query and key belong to the same segment.

    Padding is segment 0 and attends to itself only: no row of the softmax is ever fully masked, and nothing real
    reads it.
    """
    return query_BT[:, None, :, None] == key_BS[:, None, None, :]


def causal_mask(
    query_BT: Int[Array, "B T"],
    key_BS: Int[Array, "B S"],
    *,
    first: int | Int[Array, ""] = 0,
    window: int | None = None,
    prefix_BS: Int[Array, "B S"] | None = None,
) -> Bool[Array, "B 1 T S"]:
    """True where a key is of the query's segment and does not come after it.

    Args:
      query_BT, key_BS: segment ids.
      first: column of the first query among the keys (0 but for cached decoding).
      window: most columns that a query sees back, itself included (Beltagy et al., 2020).
      prefix_BS: 1 where a key belongs to the prefix of its segment, which every query of the segment reads.
    """
    columns_T = jnp.arange(query_BT.shape[1], dtype=jnp.int32) + jnp.asarray(first, jnp.int32)
    back_TS = columns_T[:, None] - jnp.arange(key_BS.shape[1], dtype=jnp.int32)[None, :]
    seen = (back_TS >= 0)[None, None]
    if window is not None:
        seen = seen & (back_TS < window)[None, None]
    if prefix_BS is not None:
        seen = seen | (prefix_BS != 0)[:, None, None, :]
    return segment_mask(query_BT, key_BS) & seen


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
) -> Bool[Array, "B 1 T S"]:
    """`causal_mask` of the row itself, or over a cache of which these T columns are the last."""
    if cache is None:
        return causal_mask(segment_ids_BT, segment_ids_BT, window=window, prefix_BS=prefix_BT)
    first = cache.length - segment_ids_BT.shape[1]
    return causal_mask(segment_ids_BT, cache.segment_ids, first=first, window=window, prefix_BS=cache.prefix)


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSKH: Float[Array, "B S K H"],
    v_BSKH: Float[Array, "B S K H"],
    mask: Bool[Array, "B 1 T S"] | None = None,
    *,
    bias: Float[Array, "1 N T S"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    key: Key = None,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(scale q k^T + bias) v (Vaswani et al., 2017), the softmax in float32.

    Args:
      k_BSKH, v_BSKH: of K heads, each read by N / K query heads (grouped-query attention; Ainslie et al., 2023).
      mask: True where a query may read a key.
      bias: added to the logits (T5's relative positions).
      scale: of the logits; absent: 1 / sqrt(H).
      dropout_rate, key: dropout of the attention probabilities; none without a key.
      implementation: "xla", "cudnn", or "auto": cuDNN on a GPU where it takes the dtype and head size, else XLA.
        Kernels that never form the probabilities cannot drop them out, so with dropout "auto" computes them openly.
    Raises:
      UserError: "cudnn" together with attention dropout.
    """
    drops = key is not None and dropout_rate > 0.0
    if implementation == "cudnn" and drops:
        raise UserError(
            "model.attention=cudnn cannot drop out attention probabilities: set model.attention_dropout=0 or "
            "model.attention=auto"
        )
    if not drops:
        fits = implementation == "auto" and bias is None and _cudnn_fits(q_BTNH)
        kernel = "cudnn" if implementation == "cudnn" or fits else "xla"
        with jax.numpy_dtype_promotion("standard"):  # inside, JAX itself mixes half precision with float32
            return jax.nn.dot_product_attention(
                q_BTNH, k_BSKH, v_BSKH, bias=bias, mask=mask, scale=scale, implementation=kernel
            )
    num_heads, head_dim = q_BTNH.shape[2:]
    if k_BSKH.shape[2] != num_heads:
        groups = num_heads // k_BSKH.shape[2]
        k_BSKH, v_BSKH = (jnp.repeat(x, groups, axis=2) for x in (k_BSKH, v_BSKH))
    q_BTNH = q_BTNH * jnp.asarray(head_dim**-0.5 if scale is None else scale, q_BTNH.dtype)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSKH, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(logits, axis=-1).astype(v_BSKH.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", dropout(probs, dropout_rate, key), v_BSKH)


def _cudnn_fits(q_BTNH: jax.Array) -> bool:
    """cuDNN's fused attention takes half precision, even lengths, and a head size that is a multiple of 8 up to 128."""
    _, length, _, head_dim = q_BTNH.shape
    half = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0
