"""R-Drop (Liang et al., 2021, "R-Drop: Regularized Dropout for Neural Networks", arXiv:2106.14448): two passes under
different dropout masks learn to agree."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxlm.objectives import Apply, Batch, Loss

Distribution = Literal["softmax", "sigmoid"]
"""What the outputs [..., C] are the logits of: one of C classes, or C labels each for itself."""


def r_drop(apply: Apply, loss: Loss, alpha: float, distribution: Distribution) -> tuple[Apply, Loss]:
    """Returns apply and loss of two passes: the mean of the two losses, and alpha times the divergence of the outputs,

        (KL(p || q) + KL(q || p)) / 2

    of each example (of a tagger: word), weighted as in the batch's `weights`; of labels each for itself, the mean of
    theirs. The sum is divided by the loss's own sum of weights.
    """

    def twice(params: Any, frozen: Any, batch: Batch, key: Any) -> tuple[Any, Any]:
        first, second = jax.random.split(key)
        return apply(params, frozen, batch, first), apply(params, frozen, batch, second)

    def total(outputs: tuple[Any, Any], batch: Batch) -> tuple[jax.Array, jax.Array]:
        (one, weight), (other, _) = (loss(output, batch) for output in outputs)
        apart = (divergence(*outputs, distribution) * batch["weights"]).sum()
        return (one + other) / 2 + alpha * apart, weight

    return twice, total


def divergence(first: jax.Array, second: jax.Array, distribution: Distribution) -> jax.Array:
    """Returns the symmetric Kullback-Leibler divergence of two sets of logits [..., C]: float32 [...]."""
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    if distribution == "softmax":
        log_p, log_q = jax.nn.log_softmax(first), jax.nn.log_softmax(second)
        return ((jnp.exp(log_p) - jnp.exp(log_q)) * (log_p - log_q)).sum(-1) / 2
    return ((jax.nn.sigmoid(first) - jax.nn.sigmoid(second)) * (first - second)).mean(-1) / 2
