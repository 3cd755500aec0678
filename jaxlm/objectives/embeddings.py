"""Losses of sentence vectors, over all texts of a global batch, wherever they stand in its packed rows.

Shape letters: B rows, S slots, D width of a vector, N = B * S texts, empty slots among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.errors import UserError
from jaxlm.fields import GROUPS
from jaxlm.objectives import Batch

ANCHOR, POSITIVE, NEGATIVE = 0, 1, 2
"""`roles` of the texts of a row."""
_NONE = -1e30


@dataclass(frozen=True)
class EmbeddingLoss:
    """A loss of cosines; called as (vectors float32 [B, S, D], batch) -> (sum of losses, sum of weights).

    The batch holds `groups` int32 [B, S], the row of each text, -1 for an empty slot; `roles` int32 [B, S]; `texts`
    int32 [B, S, 3], which texts of the split the slot's own, its row's anchor and its row's positive are; `scores`
    float32 [B, S], the gold score of its row's pair; `weights` [B, S].

    Attributes:
      kind: "ranking": cross-entropy of each anchor's positive among all positives and negatives of the batch, cosines
        divided by `temperature` (Henderson et al., 2017); candidates that are the anchor's positive, or that another
        row names as a positive of the same anchor, count neither way. "triplet": max(0, margin + cos(anchor, negative)
        - cos(anchor, positive)), the mean over the row's negatives. "cosine_mse": (cosine - score)^2. "cosent":
        log(1 + sum of exp((cos_j - cos_i) / temperature)) over pairs of rows whose scores are i > j (Su, 2022).
      symmetric: "ranking" only: half of the loss is that of the positives, which look for their anchors.
      dimensions: lengths at which vectors are also cut; the losses are added up (Kusupati et al., 2022).
    """

    kind: Literal["ranking", "triplet", "cosine_mse", "cosent"]
    temperature: float = 0.05
    margin: float = 0.3
    symmetric: bool = False
    dimensions: Sequence[int] = ()

    def __call__(self, vectors: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        """Raises UserError for `dimensions` beyond the vectors' own."""
        width = vectors.shape[-1]
        if self.dimensions and max(self.dimensions) > width:
            raise UserError(f"task.dimensions: {max(self.dimensions)} is beyond the model's {width}")
        flat = vectors.astype(jnp.float32).reshape(-1, width)
        names = (GROUPS, "roles", "scores", "weights")
        rows = {name: batch[name].reshape(-1) for name in names if name in batch}
        rows["texts"] = batch["texts"].reshape(-1, 3)
        total, weight = self._of_cosines(_cosines(flat), rows)
        for dimension in self.dimensions:
            if dimension < width:
                total = total + self._of_cosines(_cosines(flat[:, :dimension]), rows)[0]
        return total, weight

    def _of_cosines(self, cosines_NN: jax.Array, rows: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        groups, roles = rows[GROUPS], rows["roles"]
        present = groups >= 0
        anchors = present & (roles == ANCHOR)
        own = (groups[:, None] == groups[None, :]) & present[None, :]
        partners = own & (roles == POSITIVE)[None, :]
        weights = jnp.where(anchors, rows["weights"], 0.0)
        if self.kind == "ranking":
            total, weight = _ranking(cosines_NN / self.temperature, rows, weights, POSITIVE, NEGATIVE)
            if self.symmetric:
                back = jnp.where(present & (roles == POSITIVE), rows["weights"], 0.0)
                other, _ = _ranking(cosines_NN / self.temperature, rows, back, ANCHOR, ANCHOR)
                total = (total + other) / 2
            return total, weight
        pairs_N = jnp.where(partners, cosines_NN, 0.0).sum(axis=1)
        if self.kind == "triplet":
            negatives = own & (roles == NEGATIVE)[None, :]
            count = negatives.astype(jnp.float32).sum(axis=1)
            losses = jnp.maximum(0.0, cosines_NN - pairs_N[:, None] + self.margin)
            mean = jnp.where(negatives, losses, 0.0).sum(axis=1) / jnp.maximum(count, 1.0)
            weights = jnp.where(count > 0, weights, 0.0)
            return (mean * weights).sum(), weights.sum()
        if self.kind == "cosine_mse":
            return (jnp.square(pairs_N - rows["scores"]) * weights).sum(), weights.sum()
        ordered = (rows["scores"][:, None] > rows["scores"][None, :]) & anchors[:, None] & anchors[None, :]
        gaps = jnp.where(ordered, (pairs_N[None, :] - pairs_N[:, None]) / self.temperature, _NONE)
        return jax.nn.logsumexp(jnp.append(gaps.reshape(-1), 0.0)), ordered.any().astype(jnp.float32)


def _cosines(vectors_ND: jax.Array) -> jax.Array:
    """float32 [N, N]; a vector of length 0 has cosine 0 with all."""
    squares = jnp.square(vectors_ND).sum(axis=1, keepdims=True)
    unit = vectors_ND * jax.lax.rsqrt(jnp.maximum(squares, 1e-24))
    return jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST)


def _ranking(
    logits_NN: jax.Array, rows: dict[str, Any], weights: jax.Array, right: int, also: int
) -> tuple[jax.Array, jax.Array]:
    """Cross-entropy of the text of role `right` in a query's row, among all texts of roles `right` and `also`.

    Args:
      weights: float32 [N], of the queries; 0 for other texts. A query without any wrong candidate counts nothing.
    """
    groups, roles, texts = rows[GROUPS], rows["roles"], rows["texts"]
    candidates = (groups >= 0) & ((roles == right) | (roles == also))
    answer = (groups[:, None] == groups[None, :]) & (candidates & (roles == right))[None, :]
    # Equal texts are no wrong answers: the right answer again, or what goes with the same query in another row.
    own, anchor, positive = texts[:, 0], texts[:, 1], texts[:, 2]
    wanted = positive if right == POSITIVE else anchor
    query_of = anchor if right == POSITIVE else positive
    same = own[None, :] == wanted[:, None]
    same |= (query_of[None, :] == own[:, None]) & (roles == right)[None, :]
    allowed = candidates[None, :] & (answer | ~same)
    logits = jnp.where(allowed, logits_NN, _NONE)
    chosen = jnp.where(answer, logits_NN, 0.0).sum(axis=1)
    weights = jnp.where((allowed & ~answer).any(axis=1), weights, 0.0)
    return ((jax.nn.logsumexp(logits, axis=1) - chosen) * weights).sum(), weights.sum()
