"""The loss of a span's two ends, each one token of an example."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_NEVER = -1e30


def span_loss(logits_BT2: Float[Array, "B T 2"], batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Returns (sum of weighted losses, sum of weights): the mean of the cross-entropies of first and last token.

    Each is over the tokens of the example, whatever else lies in its row.

    Args:
      batch: segment_ids int32 [B, T]; start_positions and end_positions int32 [B, S], columns of the row; weights
        float32 [B, S], 0 for an empty slot.
    """
    weights_BS = batch["weights"]
    slots = jnp.arange(weights_BS.shape[1], dtype=jnp.int32)
    inside_BST = batch["segment_ids"][:, None, :] == slots[None, :, None] + 1
    losses_BS = sum(
        _cross_entropy(logits_BT2[..., i].astype(jnp.float32), batch[name], inside_BST)
        for i, name in enumerate(("start_positions", "end_positions"))
    )
    losses_BS = jnp.where(weights_BS > 0, losses_BS / 2, 0.0)
    return (losses_BS * weights_BS).sum(), weights_BS.sum()


def _cross_entropy(
    logits_BT: Float[Array, "B T"], targets_BS: Int[Array, "B S"], inside_BST: jax.Array
) -> Float[Array, "B S"]:
    columns = jnp.arange(logits_BT.shape[1], dtype=jnp.int32)
    logits_B1T = logits_BT[:, None, :]
    target_BS = jnp.where(columns[None, None, :] == targets_BS[:, :, None], logits_B1T, 0.0).sum(-1)
    return jax.nn.logsumexp(jnp.where(inside_BST, logits_B1T, _NEVER), axis=-1) - target_BS
