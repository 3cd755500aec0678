"""Losses of text classification: binary, multi-class, multi-label, regression.

Each takes outputs float32 [..., C] and a batch with `labels` [...] or [..., C] and `weights` float32 [...] (0 for empty
slots), and returns the pair (sum of weighted losses, sum of weights).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxlm.objectives import Batch, Loss


def multiclass_loss(label_smoothing: float = 0.0) -> Loss:
    """Softmax cross-entropy, -sum_c q_c log p_c with q = (1 - a) onehot + a / C (Szegedy et al., 2016)."""

    def loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        labels, weights = batch["labels"], batch["weights"]
        log_probs = jax.nn.log_softmax(outputs.astype(jnp.float32))
        picked = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
        losses = -((1.0 - label_smoothing) * picked + label_smoothing * log_probs.mean(-1))
        return (losses * weights).sum(), weights.sum()

    return loss


def binary_loss(label_smoothing: float = 0.0) -> Loss:
    """Sigmoid cross-entropy -[y log p + (1 - y) log(1 - p)] with p = sigmoid(outputs[1] - outputs[0]).

    Two outputs keep both label names in the exported head; the logit is their difference, so p equals the softmax
    probability of label 1 and the loss the two-class softmax cross-entropy.
    """

    def loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        labels, weights = batch["labels"], batch["weights"]
        outputs = outputs.astype(jnp.float32)
        targets = labels.astype(jnp.float32) * (1.0 - label_smoothing) + label_smoothing / 2
        losses = optax.sigmoid_binary_cross_entropy(outputs[..., 1] - outputs[..., 0], targets)
        return (losses * weights).sum(), weights.sum()

    return loss


def multilabel_loss(label_smoothing: float = 0.0) -> Loss:
    """Sigmoid cross-entropy of each label against its 0/1 target, averaged over the labels."""

    def loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        labels, weights = batch["labels"], batch["weights"]
        targets = labels.astype(jnp.float32) * (1.0 - label_smoothing) + label_smoothing / 2
        losses = optax.sigmoid_binary_cross_entropy(outputs.astype(jnp.float32), targets).mean(-1)
        return (losses * weights).sum(), weights.sum()

    return loss


def regression_loss(label_smoothing: float = 0.0) -> Loss:
    """Squared error (output - target)^2 of one output; smoothing does not apply."""
    del label_smoothing

    def loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        labels, weights = batch["labels"], batch["weights"]
        losses = jnp.square(outputs[..., 0].astype(jnp.float32) - labels)
        return (losses * weights).sum(), weights.sum()

    return loss


LOSSES: dict[str, Callable[[float], Loss]] = {
    "binary": binary_loss,
    "multiclass": multiclass_loss,
    "multilabel": multilabel_loss,
    "regression": regression_loss,
}
