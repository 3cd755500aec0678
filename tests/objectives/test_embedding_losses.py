"""Losses of sentence vectors against loops over rows; gradients of micro-batches with cached vectors."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.objectives.embeddings import EmbeddingLoss
from jaxlm.training.gradients import accumulated_gradients, cached_gradients

B, S, D = 4, 6, 8
# (anchor, positive, negatives, score); equal letters are equal texts.
ROWS = [
    ("a", "p", ["n"], 0.9), ("b", "q", ["m", "l"], 0.1), ("c", "p", ["o"], 0.5), ("a", "r", ["p"], 0.5),
    ("d", "s", ["q"], -0.3), ("s", "d", ["k"], 1.0),
]  # fmt: skip


def jitted(*arguments: Any, **settings: Any) -> Any:
    """A loss; compiled, it is sooner done than its operations one by one."""
    return jax.jit(EmbeddingLoss(*arguments, **settings))


def batch_of(rows: list[Any], seed: int = 0, *, negatives: bool = True) -> dict[str, jax.Array]:
    """Texts of rows at random slots, equal texts numbered alike; with random vectors under `vectors`."""
    rng = np.random.default_rng(seed)
    numbers: dict[str, int] = {}
    slots = iter(rng.permutation(B * S).tolist())
    made = {
        "groups": np.full(B * S, -1, np.int32), "roles": np.zeros(B * S, np.int32),
        "texts": np.full((B * S, 3), -1, np.int32), "scores": np.zeros(B * S, np.float32),
        "weights": np.zeros(B * S, np.float32),
    }  # fmt: skip
    for i, (anchor, positive, others, score) in enumerate(rows):
        texts = [(anchor, 0), (positive, 1), *((other, 2) for other in (others if negatives else ()))]
        ids = [numbers.setdefault(text, len(numbers)) for text, _ in texts]
        for (_, role), number in zip(texts, ids, strict=True):
            slot = next(slots)
            values = {"groups": i + 3, "roles": role, "texts": (number, *ids[:2]), "scores": score, "weights": 1}
            for name, value in values.items():
                made[name][slot] = value
    arrays = {name: jnp.asarray(value.reshape(B, S, *value.shape[1:])) for name, value in made.items()}
    return {**arrays, "vectors": jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)}


def by_row(batch: Any, size: int = D) -> list[tuple[int, int, tuple[int, int, int], np.ndarray, float]]:
    """(row, role, texts, unit vector, score) of every text."""
    flat = {name: np.asarray(value).reshape(B * S, -1) for name, value in batch.items()}
    found = []
    for k in np.flatnonzero(flat["groups"][:, 0] >= 0):
        vector = flat["vectors"][k, :size].astype(np.float64)
        unit = vector / np.linalg.norm(vector)
        found.append((int(flat["groups"][k, 0]), int(flat["roles"][k, 0]), tuple(flat["texts"][k].tolist()), unit,
                      float(flat["scores"][k, 0])))  # fmt: skip
    return found


def ranking(batch: Any, temperature: float, size: int = D, *, back: bool = False) -> tuple[float, int]:
    """Cross-entropy per query, false negatives left out; `back`: positives look for anchors."""
    texts = by_row(batch, size)
    asking, answering = (1, 0) if back else (0, 1)
    total, count = 0.0, 0
    for row, role, ids, unit, _ in texts:
        if role != asking:
            continue
        right, wrong = [], []
        for other, other_role, other_ids, vector, _ in texts:
            if other_role != answering and (back or other_role != 2):
                continue
            value = math.exp(float(unit @ vector) / temperature)
            if other == row and other_role == answering:
                right.append(value)
                continue
            same_answer = other_ids[0] == ids[1 if back else 2]
            same_query = other_role == answering and other_ids[2 if back else 1] == ids[0]
            if not same_answer and not same_query:
                wrong.append(value)
        if wrong:
            total -= math.log(right[0] / (right[0] + sum(wrong)))
            count += 1
    return total, count


def test_ranking_is_a_softmax_over_the_batch_without_false_negatives():
    batch = batch_of(ROWS)
    vectors = batch.pop("vectors")
    full = {**batch, "vectors": vectors}
    expected, count = ranking(full, 0.1)
    total, weight = jitted("ranking", 0.1)(vectors, batch)
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(weight) == count == len(ROWS)
    # Both directions; and cut vectors beside the whole.
    total, _ = jitted("ranking", 0.1, symmetric=True)(vectors, batch)
    assert float(total) == pytest.approx((expected + ranking(full, 0.1, back=True)[0]) / 2, rel=1e-5)
    total, _ = jitted("ranking", 0.1, dimensions=(D, 5, 3))(vectors, batch)
    parts = [ranking(full, 0.1, size)[0] for size in (D, 5, 3)]
    assert float(total) == pytest.approx(sum(parts), rel=1e-5)
    with pytest.raises(UserError, match=r"task\.dimensions: 9 is beyond the model's 8"):
        jitted("ranking", dimensions=(9,))(vectors, batch)


def test_what_has_nothing_to_compare_with_counts_nothing():
    loss = jax.jit(jax.value_and_grad(EmbeddingLoss("ranking"), has_aux=True))
    for rows in ([("a", "p", [], 0)], [("a", "p", [], 0), ("b", "p", [], 0)], [("a", "p", [], 0), ("a", "q", [], 0)]):
        batch = batch_of(rows)
        vectors = batch.pop("vectors")
        (total, weight), grads = loss(vectors, batch)
        assert float(total) == float(weight) == 0 and not np.asarray(grads).any()


def test_triplets():
    batch = batch_of(ROWS)
    texts = by_row(batch)
    expected = 0.0
    for row, role, _, unit, _ in texts:
        if role == 0:
            [right] = [unit @ v for g, r, _, v, _ in texts if g == row and r == 1]
            expected += np.mean([max(0.0, 0.3 + unit @ v - right) for g, r, _, v, _ in texts if g == row and r == 2])
    total, weight = jitted("triplet")(batch.pop("vectors"), batch)
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(weight) == len(ROWS)


def test_scored_pairs():
    batch = batch_of(ROWS, negatives=False)
    pairs = {}
    for row, _, _, unit, score in by_row(batch):
        pairs.setdefault(row, [score]).append(unit)
    cosines = [(score, float(first @ second)) for score, first, second in pairs.values()]
    vectors = batch.pop("vectors")
    total, weight = jitted("cosine_mse")(vectors, batch)
    assert float(total) == pytest.approx(sum((c - s) ** 2 for s, c in cosines), rel=1e-5) and float(weight) == len(ROWS)
    total, weight = jitted("cosent", 0.2)(vectors, batch)
    above = [(d - c) / 0.2 for s, c in cosines for t, d in cosines if s > t]
    assert float(total) == pytest.approx(math.log1p(sum(map(math.exp, above))), rel=1e-5) and float(weight) == 1
    batch["scores"] = jnp.zeros_like(batch["scores"])
    assert float(jitted("cosent")(vectors, batch)[1]) == 0


@pytest.mark.parametrize("kind", ["ranking", "cosent"])
def test_cached_gradients_are_those_of_the_whole_batch(kind):
    """Rows of a pair lie in different micro-batches; each micro-batch has rows of its own."""
    batch = batch_of(ROWS, seed=5, negatives=kind == "ranking")
    batch["tokens"] = batch.pop("vectors")
    params = {"w": jnp.asarray(np.random.default_rng(1).normal(size=(D, D)), jnp.float32)}

    def apply(params: Any, frozen: Any, batch: Any, key: Any, drop: bool) -> jax.Array:
        kept = jax.random.bernoulli(key, 0.8, batch["tokens"].shape).astype(jnp.float32) if drop else 1.0
        return jnp.tanh(batch["tokens"] * kept @ params["w"])

    def split(number: int) -> dict[str, jax.Array]:
        return {name: value.reshape(number, -1, *value.shape[1:]) for name, value in batch.items()}

    loss, key = EmbeddingLoss(kind), jax.random.key(0)
    dry, wet = (partial(apply, drop=drop) for drop in (False, True))
    whole, mean = jax.jit(accumulated_gradients(dry, loss))(params, {}, split(1), key)
    for number in (1, 4):
        grads, found = jax.jit(cached_gradients(dry, loss))(params, {}, split(number), key)
        np.testing.assert_allclose(found, mean, rtol=1e-5)
        np.testing.assert_allclose(grads["w"], whole["w"], atol=1e-5, rtol=0)
    # With dropout, both passes of a micro-batch draw the same masks: the gradient is that of one function.
    grads, _ = jax.jit(cached_gradients(wet, loss))(params, {}, split(2), key)

    def masked(params: Any) -> jax.Array:
        parts, keys = split(2), jax.random.split(key, 2)
        outputs = jnp.stack([wet(params, {}, {"tokens": parts["tokens"][k]}, keys[k]) for k in range(2)])
        total, weight = loss(outputs.reshape(B, S, D), batch)
        return total / weight

    np.testing.assert_allclose(grads["w"], jax.jit(jax.grad(masked))(params)["w"], atol=1e-5, rtol=0)
