"""Masks and scaled dot-product attention over kernels.

Shape letters: B rows, T query length, S key length, N heads, H head_dim.
"""

from __future__ import annotations

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


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BSNH: Float[Array, "B S N H"],
    v_BSNH: Float[Array, "B S N H"],
    mask: Bool[Array, "B 1 T S"] | None = None,
    *,
    dropout_rate: float = 0.0,
    key: Key = None,
    implementation: str = "auto",
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v (Vaswani et al., 2017), the softmax in float32.

    Args:
      mask: True where a query may read a key.
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
        kernel = "cudnn" if implementation == "cudnn" or implementation == "auto" and _cudnn_fits(q_BTNH) else "xla"
        with jax.numpy_dtype_promotion("standard"):  # inside, JAX itself mixes half precision with float32
            return jax.nn.dot_product_attention(q_BTNH, k_BSNH, v_BSNH, mask=mask, implementation=kernel)
    scale = jnp.asarray(q_BTNH.shape[-1] ** -0.5, q_BTNH.dtype)
    logits = jnp.einsum("BTNH,BSNH->BNTS", q_BTNH * scale, k_BSNH, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    probs = jax.nn.softmax(logits, axis=-1).astype(v_BSNH.dtype)
    return jnp.einsum("BNTS,BSNH->BTNH", dropout(probs, dropout_rate, key), v_BSNH)


def _cudnn_fits(q_BTNH: jax.Array) -> bool:
    """cuDNN's fused attention takes half precision, even lengths, and a head size that is a multiple of 8 up to 128."""
    _, length, _, head_dim = q_BTNH.shape
    half = q_BTNH.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128 and length % 2 == 0
