"""Masks, scaled dot-product attention over kernels, and the cache of step-by-step decoding.

Shape letters: B rows, T query length, S key length, N heads, K key and value heads, H head_dim, L layers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.nn import flash, splash
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig, Key, take_columns
from jaxlm.nn.remat import ATTENTION
from jaxlm.parallel.sharding import Rules, constrain

NO_MESH = Rules()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mask:
    """A mask stored as per-token descriptors (segment ids, prefix flags) instead of a dense T x S array.

    A query reads the keys of its own segment, or some of them. Padding is segment 0 and attends to itself only: no row
    of the softmax is ever fully masked, and no real token reads padding. The arrays are the leaves of a pytree, the
    rest is static.
    """

    query_BT: Any
    """int32 [B, T], segment ids."""
    key_BS: Any
    """int32 [B, S]."""
    columns_BT: Any = None
    """int32 [B, T], the column of each query among the keys; absent: 0, 1, 2, ..."""
    prefix_BS: Any = None
    """int32 [B, S], 1 where a key belongs to the prefix of its segment, which every query of the segment reads."""
    windowed: Any = None
    """bool [], False lifts the window: layers of one stack may differ in it. Absent: the window holds."""
    causal: bool = field(default=False, metadata={"static": True})
    """A query reads no key that comes after it."""
    window: int | None = field(default=None, metadata={"static": True})
    """Number of columns that a query reads backwards and, unless `causal`, also forwards, its own included (Beltagy et
    al., 2020); None: all."""

    def at(self, columns_BQ: Int[Array, "B Q"] | None) -> Mask:
        """Returns the mask of the queries in these columns only; None: of all queries."""
        if columns_BQ is None:
            return self
        own = columns_BQ if self.columns_BT is None else take_columns(self.columns_BT, columns_BQ)
        return replace(self, query_BT=take_columns(self.query_BT, columns_BQ), columns_BT=own)

    def dense(self, rules: Rules = NO_MESH) -> Bool[Array, "B 1 T S"]:
        """Returns the dense mask: True where a query reads a key; sharded as the queries are."""
        key_BS = constrain(self.key_BS, ("batch", "kv_length"), rules)
        same = self.query_BT[:, None, :, None] == key_BS[:, None, None, :]
        if not self.causal and self.window is None:
            return constrain(same, ("batch", None, "length", "kv_length"), rules)
        columns_BT = self.columns_BT
        if columns_BT is None:
            columns_BT = jnp.arange(self.query_BT.shape[1], dtype=jnp.int32)[None]
        keys_S = jnp.arange(self.key_BS.shape[1], dtype=jnp.int32)
        distance = columns_BT[:, None, :, None] - keys_S[None, None, None]
        seen = distance >= 0 if self.causal else jnp.ones_like(distance, dtype=bool)
        if self.window is not None:
            near = (distance if self.causal else jnp.abs(distance)) < self.window
            seen = seen & (near if self.windowed is None else near | ~self.windowed)
        if self.prefix_BS is not None:
            prefix_BS = constrain(self.prefix_BS, ("batch", "kv_length"), rules)
            seen = seen | (prefix_BS != 0)[:, None, None, :]
        return constrain(same & seen, ("batch", None, "length", "kv_length"), rules)


class KVCache(NamedTuple):
    """Keys and values of all layers for the tokens read so far; the first `length` columns are filled.

    The other columns are of segment 0 and come after every query, so that a causal mask hides them. Heads come before
    columns, as the products of attention read them: else XLA's CPU compiler transposes the whole of it at each token.
    """

    keys: Float[Array, "L B K S H"]
    values: Float[Array, "L B K S H"]
    segment_ids: Int[Array, "B S"]
    prefix: Int[Array, "B S"]
    length: Int[Array, ""]

    def extend(self, segment_ids_BT: Int[Array, "B T"], prefix_BT: Int[Array, "B T"] | None = None) -> KVCache:
        """Appends T columns; each layer then writes its keys and values."""
        start = (0, self.length)
        segment_ids = jax.lax.dynamic_update_slice(self.segment_ids, segment_ids_BT, start)
        prefix = self.prefix if prefix_BT is None else jax.lax.dynamic_update_slice(self.prefix, prefix_BT, start)
        length = self.length + segment_ids_BT.shape[1]
        return self._replace(segment_ids=segment_ids, prefix=prefix, length=length)

    def put(
        self, layer: Int[Array, ""], k_BTKH: Float[Array, "B T K H"], v_BTKH: Float[Array, "B T K H"]
    ) -> tuple[KVCache, Float[Array, "B S K H"], Float[Array, "B S K H"]]:
        """Writes one layer's keys and values to the last T columns; returns the cache and all of the layer's."""
        start = (layer, 0, 0, self.length - k_BTKH.shape[1], 0)
        keys, values = (
            jax.lax.dynamic_update_slice(whole, jnp.swapaxes(new, 1, 2)[None].astype(whole.dtype), start)
            for whole, new in ((self.keys, k_BTKH), (self.values, v_BTKH))
        )
        k, v = (jax.lax.dynamic_index_in_dim(whole, layer, keepdims=False) for whole in (keys, values))
        return self._replace(keys=keys, values=values), jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)


def empty_cache(num_layers: int, rows: int, length: int, num_kv_heads: int, head_dim: int, dtype: Any) -> KVCache:
    """Returns a cache for `length` tokens in each row."""
    keys = jnp.zeros((num_layers, rows, num_kv_heads, length, head_dim), dtype)
    marks = jnp.zeros((rows, length), jnp.int32)
    return KVCache(keys, jnp.zeros_like(keys), marks, marks, jnp.zeros((), jnp.int32))


def decoder_mask(
    segment_ids_BT: Int[Array, "B T"],
    cache: KVCache | None,
    *,
    window: int | None = None,
    prefix_BT: Int[Array, "B T"] | None = None,
) -> Mask:
    """Returns the causal mask of whole rows, or of the last T columns over a cache."""
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
    compute: ComputeConfig,
    *,
    bias: Float[Array, "#B N T S"] | None = None,
    scale: float | None = None,
    dropout_rate: float = 0.0,
    key: Key = None,
) -> Float[Array, "B T N H"]:
    """softmax(scale q k^T + bias) v (Vaswani et al., 2017), the softmax in float32.

    `compute.attention` names a kernel; "auto" takes the first one that the mesh's devices have and that supports the
    call. XLA supports every call.
      "splash": on a TPU, block by block from the segment ids, without bias and prefix (`splash.splash`; with dropout
        and for narrow heads `flash.flash`). XLA has queries in columns of their own (slots, cached decoding) and rows
        under 128 columns.
      "cudnn": on a GPU, half precision, heads of up to 128 dimensions, no dropout; with the dense mask.
      "xla": `jax.nn.dot_product_attention` with the dense mask; with dropout, the same formula written out.

    Args:
      k_BSKH, v_BSKH: of K heads, each read by N / K query heads (grouped-query attention; Ainslie et al., 2023).
      bias: added to the logits (relative positions).
      scale: of the logits; absent: 1 / sqrt(H).
      dropout_rate, key: dropout of the attention probabilities; none without a key.
    Raises:
      UserError: the kernel that `compute` names cannot do what is asked.
    """
    if scale is None:
        scale = 1 / math.sqrt(q_BTNH.shape[3])
    drops = key is not None and dropout_rate > 0.0
    kernel = _kernel(q_BTNH, k_BSKH, mask, compute, biased=bias is not None, rate=dropout_rate if drops else 0.0)
    if kernel == "splash":
        settings = {"rules": compute.rules, "scale": scale, "causal": mask.causal}
        run = functools.partial(splash.splash, **settings)
        num_kv, head_dim = k_BSKH.shape[2], k_BSKH.shape[3]
        beside = flash.side_by_side(q_BTNH.shape[2], num_kv, head_dim, compute.rules)
        if drops or beside and flash.fits(q_BTNH, 0.0, compute.rules):
            dropped = {"rate": dropout_rate, "key": key} if drops else {}
            run = functools.partial(flash.flash, **settings, **dropped)
        return _windowed(run, (q_BTNH, k_BSKH, v_BSKH, mask.query_BT, mask.key_BS), mask)
    if not drops:
        with jax.numpy_dtype_promotion("standard"):  # inside, JAX itself mixes half precision with float32
            y_BTNH = jax.nn.dot_product_attention(
                q_BTNH, k_BSKH, v_BSKH, bias=bias, mask=mask.dense(compute.rules), scale=scale, implementation=kernel
            )
        return checkpoint_name(y_BTNH, ATTENTION) if kernel == "xla" else y_BTNH  # cuDNN's own residuals have no name
    if k_BSKH.shape[2] != q_BTNH.shape[2]:
        groups = q_BTNH.shape[2] // k_BSKH.shape[2]
        k_BSKH, v_BSKH = (jnp.repeat(x, groups, axis=2) for x in (k_BSKH, v_BSKH))
    q_BTNH = q_BTNH * jnp.asarray(scale, q_BTNH.dtype)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSKH, preferred_element_type=jnp.float32)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    # Added, so that the backward pass need not mask the logits' gradient again: that of a zero weight is zero.
    logits = logits + jnp.where(mask.dense(compute.rules), 0.0, jnp.finfo(jnp.float32).min)
    weights_BNTS = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    # The sums divide the output instead of the weights, which are S / H times as many.
    sums_BTN1 = weights_BNTS.sum(-1).transpose(0, 2, 1)[..., None]
    weights_BNTS = dropout(weights_BNTS.astype(v_BSKH.dtype), dropout_rate, key)
    # In this order XLA's CPU compiler finds a faster layout, forward and backward.
    y_BTNH = jnp.einsum("BSNH,BNTS->BTNH", v_BSKH, weights_BNTS, preferred_element_type=jnp.float32)
    return checkpoint_name((y_BTNH / sums_BTN1).astype(v_BSKH.dtype), ATTENTION)


def _kernel(
    q_BTNH: jax.Array, k_BSKH: jax.Array, mask: Mask, compute: ComputeConfig, *, biased: bool, rate: float
) -> Literal["splash", "cudnn", "xla"]:
    """Returns the kernel for one call of `attend`, by the mesh's devices: compilation may run on another platform."""
    asked, platform = compute.attention, compute.rules.platform
    if asked == "splash" or asked == "auto" and platform == "tpu":
        whole = mask.columns_BT is None
        missing = {
            f"run on a {platform}": platform not in ("tpu", "cpu"),
            "add relative positions to the logits": biased,
            "read a prefix in both directions": whole and mask.prefix_BS is not None,
            _DROPOUT: rate > 0 and not flash.fits(q_BTNH, rate, compute.rules),
        }
        lacking = next((feature for feature, wanted in missing.items() if wanted), None)
        if lacking and asked == "splash":
            raise _cannot(asked, lacking)
        if not whole or not splash.fits(q_BTNH.shape[0], q_BTNH.shape[1], k_BSKH.shape[1], compute.rules):
            return "xla"
        return "xla" if lacking else "splash"
    if asked == "cudnn" and rate > 0:
        raise _cannot(asked, _DROPOUT)
    fits = asked == "auto" and platform == "gpu" and not biased and rate == 0 and _cudnn_fits(q_BTNH)
    return "cudnn" if asked == "cudnn" or fits else "xla"


_DROPOUT = "drop out attention probabilities"


def _cannot(kernel: str, feature: str) -> UserError:
    without = "model.attention_dropout=0 or " if feature == _DROPOUT else ""
    return UserError(f"model.attention={kernel} cannot {feature}: set {without}model.attention=auto")


def _cudnn_fits(q_BTNH: jax.Array) -> bool:
    """True for half precision, even lengths, and a head size that is a multiple of 8 up to 128."""
    _, length, _, head_dim = q_BTNH.shape
    half = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return half and head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0


def _windowed(kernel: Callable[..., jax.Array], arrays: tuple[jax.Array, ...], mask: Mask) -> jax.Array:
    """A kernel's window is static: where layers differ in it, both kernels are compiled and one runs."""
    if mask.window is None or mask.windowed is None:
        return kernel(*arrays, window=mask.window)
    local, whole = (functools.partial(kernel, window=window) for window in (mask.window, None))
    return jax.lax.cond(mask.windowed, local, whole, *arrays)
