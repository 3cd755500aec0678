"""Loss of multiple choice: a softmax over the candidates of each question, wherever they stand in a packed batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxlm.fields import GROUPS
from jaxlm.objectives import Batch

_NONE = -1e30


def multiple_choice_loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy -log softmax(scores of a question's candidates)[right one].

    Args:
      outputs: float32 [B, S, 1], a score for each candidate.
      batch: `groups` int32 [B, S], the question of each slot, -1 for an empty one; `labels` [B, S], 1 for the right
        candidate; `weights` [B, S].
    Returns:
      (sum of losses over questions, number of questions).
    """
    scores = outputs[..., 0].astype(jnp.float32).reshape(-1)
    groups = batch[GROUPS].reshape(-1)
    right = (batch["labels"].astype(jnp.float32) * batch["weights"]).reshape(-1)
    together = (groups[:, None] == groups[None, :]) & (groups >= 0)[None, :]
    partition = jax.nn.logsumexp(jnp.where(together, scores[None, :], _NONE), axis=1)
    return ((partition - scores) * right).sum(), right.sum()
