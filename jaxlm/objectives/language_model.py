"""Losses and measures of pretraining: next tokens, masked tokens, taken-out spans, replaced tokens.

The objectives differ in what a row of the batch asks (`data.corrupt`): the loss of every one is the cross-entropy of
`labels` at `weights`, replaced-token detection adding its discriminator's.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.nn.heads import FactoredLogits
from jaxlm.objectives import Batch, Loss
from jaxlm.objectives.cross_entropy import NO_TERMS, LossTerms, cross_entropy, token_scores


def language_model_loss(*, terms: LossTerms = NO_TERMS, chunk: int | None = None) -> Loss:
    """-log p(label) of each weighted token (maximum likelihood); `terms` and `chunk` as in `cross_entropy`."""

    def loss(outputs: FactoredLogits, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return cross_entropy(outputs, batch["labels"], batch["weights"], terms=terms, chunk=chunk)

    return loss


def measure_language_model(outputs: FactoredLogits, batch: Batch, *, chunk: int | None = None) -> dict[str, jax.Array]:
    """Sums over a batch, float32 []: `nll` in nats, `tokens` and `correct` of the tokens that are predicted."""
    losses, correct = token_scores(outputs, batch["labels"], chunk=chunk)
    weights = batch["weights"]
    return {
        "nll": (losses * weights).sum(),
        "tokens": weights.sum(),
        "correct": jnp.where(correct, weights, 0.0).sum(),
    }


def replaced_tokens_loss(
    *, discriminator_weight: float, mask_rate: float, terms: LossTerms = NO_TERMS, chunk: int | None = None
) -> Loss:
    """The generator's cross-entropy and w times the discriminator's (Clark et al., 2020, equation 3).

    Both are means, of the masked tokens M and of all tokens N. Since one division ends a step, the discriminator's sum
    is weighted with w r, r the mask rate: (sum_M + w r sum_N) / |M| is mean_M + w mean_N where |M| = r |N|.
    """

    def loss(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
        total, weight = cross_entropy(outputs.generator, batch["labels"], batch["weights"], terms=terms, chunk=chunk)
        return total + discriminator_weight * mask_rate * _discriminator(outputs, batch)[0], weight

    return loss


def measure_replaced_tokens(outputs: Any, batch: Batch, *, chunk: int | None = None) -> dict[str, jax.Array]:
    """Sums over a batch, float32 []: the generator's as in `measure_language_model`, and of the discriminator
    `discriminator_nll`, `real` (tokens), `discriminator_correct`, and `hits`, `found`, `replaced` (true positives,
    tokens called replaced, tokens that were)."""
    sums = measure_language_model(outputs.generator, batch, chunk=chunk)
    total, real = _discriminator(outputs, batch)
    called = outputs.discriminator > 0
    replaced = outputs.replaced
    return sums | {
        "discriminator_nll": total,
        "real": real.sum(),
        "discriminator_correct": jnp.where(called == replaced, real, 0.0).sum(),
        "hits": jnp.where(called & replaced, real, 0.0).sum(),
        "found": jnp.where(called, real, 0.0).sum(),
        "replaced": jnp.where(replaced, real, 0.0).sum(),
    }


def _discriminator(outputs: Any, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Sum of the sigmoid cross-entropies of the real tokens, and which tokens are real, float32 [R, T]."""
    real = (batch["segment_ids"] > 0).astype(jnp.float32)
    losses = optax.sigmoid_binary_cross_entropy(outputs.discriminator, outputs.replaced.astype(jnp.float32))
    return (losses * real).sum(), real
