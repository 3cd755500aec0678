"""Losses for classes of unequal size: weights of classes, the focal factor, logits adjusted by the classes' shares."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.objectives import Batch, Loss
from jaxlm.objectives.classification import LOSSES


class Skew(NamedTuple):
    """What sets a loss apart from plain cross-entropy; by default nothing does.

    Attributes:
      class_weights: weight of the examples of each class, C numbers; of a multi-label problem, of the rows that have
        the label, beside 1 for those that lack it. None: all weigh the same.
      focal_gamma: exponent of the focal factor (1 - p)^gamma, p the probability of what is right: Lin et al., "Focal
        Loss for Dense Object Detection" (2017). None: without.
      offsets: what is added to the logits in the loss alone, C numbers, tau log(share of the class): Menon et al.,
        "Long-tail learning via logit adjustment" (2021), equation 10; of a multi-label problem, tau log(share / (1 -
        share)), which is the same between a label and its absence. None: nothing.
    """

    class_weights: tuple[float, ...] | None = None
    focal_gamma: float | None = None
    offsets: tuple[float, ...] | None = None


NO_SKEW = Skew()


def skewed_loss(problem: str, label_smoothing: float, skew: Skew) -> Loss:
    """Returns the loss of a problem under `skew`: the sum of w l, and the sum of w.

    w is an example's weight times that of its class, so that a batch's loss is the weighted mean of its examples'
    losses, whatever the weights' scale. A multi-label example has a w of each of its C labels, divided by C.

    Args:
      problem: binary, multiclass or multilabel; outputs and batch are those of `objectives.classification`.
      label_smoothing: as there; 0 with the focal factor.
    """
    if skew == NO_SKEW:
        return LOSSES[problem](label_smoothing)
    losses_of = {"binary": _binary, "multiclass": _multiclass, "multilabel": _multilabel}[problem]
    weights_C = None if skew.class_weights is None else np.asarray(skew.class_weights, np.float32)

    def loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        labels, weights = batch["labels"], batch["weights"]
        logits = outputs.astype(jnp.float32)
        if skew.offsets is not None:
            logits = logits + _last_axis(np.asarray(skew.offsets, np.float32), logits.ndim)
        losses = losses_of(logits, labels, label_smoothing, skew.focal_gamma)
        if problem == "multilabel":
            rows = weights[..., None] / labels.shape[-1]
            on = 1.0 if weights_C is None else _last_axis(weights_C, labels.ndim)
            weights = rows * jnp.where(labels > 0, on, 1.0)
        elif weights_C is not None:
            weights = weights * jnp.asarray(weights_C)[labels]
        return (losses * weights).sum(), weights.sum()

    return loss


def _last_axis(values: np.ndarray, ndim: int) -> jax.Array:
    return jnp.asarray(values.reshape((1,) * (ndim - 1) + (-1,)))


def _multiclass(logits: jax.Array, labels: jax.Array, smoothing: float, gamma: float | None) -> jax.Array:
    """[...]: -(1 - p_y)^gamma log p_y, or the smoothed cross-entropy."""
    log_probs = jax.nn.log_softmax(logits)
    picked = jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
    if gamma is None:
        return -((1.0 - smoothing) * picked + smoothing * log_probs.mean(-1))
    # 1 - p_y as the sum of the others: exact, with a finite gradient, where p_y rounds to 1.
    hit = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    log_rest = jax.nn.logsumexp(jnp.where(hit, -jnp.inf, log_probs), axis=-1)
    return -jnp.exp(gamma * log_rest) * picked


def _sigmoid(logits: jax.Array, labels: jax.Array, smoothing: float, gamma: float | None) -> jax.Array:
    """As logits: sigmoid cross-entropy of each against 0 or 1."""
    on, off = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    targets = labels.astype(jnp.float32)
    if gamma is None:
        targets = targets * (1.0 - smoothing) + smoothing / 2
        return -targets * on - (1.0 - targets) * off
    right, wrong = jnp.where(targets > 0, on, off), jnp.where(targets > 0, off, on)
    return -jnp.exp(gamma * wrong) * right


def _binary(logits: jax.Array, labels: jax.Array, smoothing: float, gamma: float | None) -> jax.Array:
    return _sigmoid(logits[..., 1] - logits[..., 0], labels, smoothing, gamma)


_multilabel = _sigmoid
