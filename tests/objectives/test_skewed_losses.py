"""Class weights, focal loss and logit adjustment, and their gradients, against a slow reference."""

from __future__ import annotations

import math
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.objectives.classification import LOSSES
from jaxlm.objectives.skewed import NO_SKEW, Skew, skewed_loss

WEIGHTS = {"binary": (0.5, 3.0), "multiclass": (0.25, 1.0, 4.0), "multilabel": (2.0, 0.5, 7.0)}
OFFSETS = {"binary": (-0.1, -2.3), "multiclass": (-0.2, -1.9, -3.0), "multilabel": (-1.0, 0.5, -4.0)}


def example_loss(problem: str, z: list[float], label: list[int], smoothing: float, skew: Skew) -> tuple[float, float]:
    """(sum of w l, sum of w) of one example, by the definitions, one number at a time."""
    count = len(z)
    z = [a + b for a, b in zip(z, skew.offsets or [0.0] * count, strict=True)]
    gamma = skew.focal_gamma or 0.0
    if problem == "multilabel":
        total = weight = 0.0
        for c in range(count):
            p = 1 / (1 + math.exp(-z[c]))
            on = skew.class_weights[c] if skew.class_weights and label[c] else 1.0
            target = label[c] * (1 - smoothing) + smoothing / 2
            loss = -target * math.log(p) - (1 - target) * math.log(1 - p)
            if skew.focal_gamma is not None:
                right = p if label[c] else 1 - p
                loss = -((1 - right) ** gamma) * math.log(right)
            total, weight = total + on * loss / count, weight + on / count
        return total, weight
    [y] = label
    p = [math.exp(value) / sum(map(math.exp, z)) for value in z]
    targets = [(c == y) * (1 - smoothing) + smoothing / count for c in range(count)]
    loss = -sum(t * math.log(q) for t, q in zip(targets, p, strict=True))
    if skew.focal_gamma is not None:
        loss = -((1 - p[y]) ** gamma) * math.log(p[y])
    on = skew.class_weights[y] if skew.class_weights else 1.0
    return on * loss, on


def batch_loss(problem: str, z: np.ndarray, batch: dict, smoothing: float, skew: Skew) -> tuple[float, float]:
    total = weight = 0.0
    for at in np.ndindex(z.shape[:-1]):
        label = np.atleast_1d(batch["labels"][at]).astype(int).tolist()
        found = example_loss(problem, z[at].tolist(), label, smoothing, skew)
        total += float(batch["weights"][at]) * found[0]
        weight += float(batch["weights"][at]) * found[1]
    return total, weight


def made(problem: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    outputs = rng.normal(0, 2, (2, 3, len(WEIGHTS[problem]))).astype(np.float32)
    shape = outputs.shape if problem == "multilabel" else outputs.shape[:-1]
    labels = rng.integers(0, 2 if problem == "multilabel" else outputs.shape[-1], shape)
    weights = np.asarray([[1, 1, 0.5], [1, 0, 0]], np.float32)
    return outputs, {"labels": labels.astype(np.float32 if problem == "multilabel" else np.int32), "weights": weights}


CASES = [
    (problem, smoothing, Skew(WEIGHTS[problem] if weights else None, gamma, OFFSETS[problem] if offsets else None))
    for problem, (smoothing, weights, gamma, offsets) in product(
        WEIGHTS, [(0.2, True, None, False), (0.0, False, 0.5, False), (0.2, False, None, True), (0.0, True, 2.0, True)]
    )
]


@pytest.mark.parametrize(("problem", "smoothing", "skew"), CASES)
def test_losses_and_gradients_equal_the_reference(problem, smoothing, skew):
    outputs, batch = made(problem)
    loss = skewed_loss(problem, smoothing, skew)
    placed = {name: jnp.asarray(value) for name, value in batch.items()}

    def mean(z):
        total, weight = loss(z, placed)
        return total / weight, (total, weight)

    (_, found), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(outputs))
    assert np.allclose(found, batch_loss(problem, outputs.astype(np.float64), batch, smoothing, skew), rtol=1e-5)
    step = 1e-5
    for at in np.ndindex(outputs.shape):
        sides = []
        for sign in (1, -1):
            moved = outputs.astype(np.float64)
            moved[at] += sign * step
            total, weight = batch_loss(problem, moved, batch, smoothing, skew)
            sides.append(total / weight)
        assert float(gradient[at]) == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=2e-6), at


@pytest.mark.parametrize("problem", WEIGHTS)
def test_what_changes_nothing_gives_the_plain_loss(problem):
    """Without skew the very numbers; with equal weights, gamma 0 and no offsets the same up to rounding."""
    outputs, batch = made(problem)
    placed = {name: jnp.asarray(value) for name, value in batch.items()}
    plain = LOSSES[problem](0.1)(jnp.asarray(outputs), placed)
    assert skewed_loss(problem, 0.1, NO_SKEW)(jnp.asarray(outputs), placed) == plain
    ones = tuple(1.0 for _ in WEIGHTS[problem])
    for skew, smoothing in ((Skew(ones), 0.1), (Skew(None, 0.0), 0.0), (Skew(None, None, (0.0,) * len(ones)), 0.1)):
        expected = LOSSES[problem](smoothing)(jnp.asarray(outputs), placed)
        assert np.allclose(skewed_loss(problem, smoothing, skew)(jnp.asarray(outputs), placed), expected, rtol=1e-6)


@pytest.mark.parametrize("problem", WEIGHTS)
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_of_extreme_logits_has_a_finite_gradient(problem, gamma):
    """(1 - p)^gamma with p = 1: where it is computed as it is written, the gradient is not a number."""
    _, batch = made(problem)
    placed = {name: jnp.asarray(value) for name, value in batch.items()}
    size = len(WEIGHTS[problem])
    right = batch["labels"] if problem == "multilabel" else np.eye(size)[batch["labels"]]
    for sign in (1, -1):
        outputs = jnp.asarray(sign * 200 * (2 * right - 1), jnp.float32)
        loss = skewed_loss(problem, 0.0, Skew(None, gamma))
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z, placed)[0])(outputs)
        assert np.isfinite(value) and np.isfinite(gradient).all()
        assert (float(value) == 0) == (sign == 1)
