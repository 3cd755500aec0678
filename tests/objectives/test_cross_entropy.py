"""Cross-entropy over a vocabulary: hand-computed values, and equality of the chunked form with the plain one."""

from __future__ import annotations

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.heads import FactoredLogits
from jaxlm.objectives.cross_entropy import LossTerms, chunk_size, cross_entropy, token_scores

BOTH_TERMS = LossTerms(label_smoothing=0.1, z_loss=0.01)


def random_case(rows=3, length=7, width=5, vocab=11, dtype=np.float32, bias=True, seed=0):
    rng = np.random.default_rng(seed)
    factors = FactoredLogits(
        jnp.asarray(rng.normal(0, 1, (rows, length, width)), dtype),
        jnp.asarray(rng.normal(0, 1, (vocab, width)), jnp.float32),
        jnp.asarray(rng.normal(0, 1, vocab), jnp.float32) if bias else None,
    )
    labels = jnp.asarray(rng.integers(0, vocab, (rows, length)), jnp.int32)
    weights = jnp.asarray(rng.random((rows, length)) * (rng.random((rows, length)) < 0.7), jnp.float32)
    return factors, labels, weights


def test_two_tokens_by_hand():
    # Logits (0, log 3) and (log 2, 0): p = (1/4, 3/4) and (2/3, 1/3).
    states = jnp.asarray([[[0.0, math.log(3)], [math.log(2), 0.0]]])
    factors = FactoredLogits(states, jnp.eye(2))
    labels = jnp.asarray([[1, 1]], jnp.int32)
    total, weight = cross_entropy(factors, labels, jnp.asarray([[1.0, 3.0]]))
    assert float(total) == pytest.approx(-math.log(3 / 4) - 3 * math.log(1 / 3), abs=1e-6)
    assert float(weight) == 4.0
    nll, correct = token_scores(factors, labels)
    np.testing.assert_allclose(nll, [[math.log(4 / 3), math.log(3)]], rtol=1e-6)
    assert correct.tolist() == [[True, False]]


def test_terms_by_hand():
    factors = FactoredLogits(jnp.asarray([[[0.0, math.log(3)]]]), jnp.eye(2))
    labels, weights = jnp.asarray([[1]], jnp.int32), jnp.ones((1, 1))
    smoothed, _ = cross_entropy(factors, labels, weights, terms=LossTerms(label_smoothing=0.2))
    assert float(smoothed) == pytest.approx(-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4), abs=1e-6)
    held, _ = cross_entropy(factors, labels, weights, terms=LossTerms(z_loss=0.5))
    assert float(held) == pytest.approx(-math.log(3 / 4) + 0.5 * math.log(4) ** 2, abs=1e-6)


@pytest.mark.parametrize(
    ("chunk", "bias", "terms"),
    [
        (1, True, LossTerms(0.1, 0.01)),
        (2, False, LossTerms()),
        (3, False, LossTerms(0.1, 0.01)),
        (6, True, LossTerms()),
    ],
)
def test_chunks_change_neither_loss_nor_gradients(chunk, bias, terms):
    factors, labels, weights = random_case(bias=bias)

    def loss(factors, chunk):
        # An outer factor, since the chunked form has a derivative of its own.
        return 0.7 * cross_entropy(factors, labels, weights, terms=terms, chunk=chunk)[0]

    plain = jax.value_and_grad(loss)(factors, 7)
    chunked = jax.value_and_grad(loss)(factors, chunk)
    chex.assert_trees_all_close(chunked, plain, atol=1e-5, rtol=1e-5)
    assert float(loss(factors, chunk)) == pytest.approx(float(plain[0]), abs=1e-5)  # without a gradient
    chex.assert_trees_all_close(
        token_scores(factors, labels, chunk=chunk), token_scores(factors, labels, chunk=7), atol=1e-6
    )


def test_chunked_half_precision_is_close():
    factors, labels, weights = random_case(dtype=jnp.bfloat16)
    plain, chunked = (
        jax.value_and_grad(lambda f, c=c: cross_entropy(f, labels, weights, chunk=c)[0])(factors) for c in (7, 2)
    )
    assert chunked[1].states.dtype == jnp.bfloat16 and chunked[1].table.dtype == jnp.float32
    chex.assert_trees_all_close(chunked, plain, atol=0.05, rtol=0.05)


def test_whole_logits_never_exist():
    """The compiled gradient needs less memory than the logits alone would."""
    rows, length, width, vocab = 4, 256, 16, 8192
    factors = FactoredLogits(jnp.zeros((rows, length, width)), jnp.zeros((vocab, width)))
    labels, weights = jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length))
    logits = rows * length * vocab * 4

    def temporaries(chunk):
        def loss(factors):
            return cross_entropy(factors, labels, weights, chunk=chunk)[0]

        analysis = jax.jit(jax.grad(loss)).lower(factors).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(length) > logits
    assert temporaries(16) < logits / 4


def test_chunk_is_chosen_by_the_number_of_logits():
    assert chunk_size(8, 128, 65) == 128
    assert chunk_size(32, 512, 50257) == 2**25 // (32 * 50257)
    assert chunk_size(2**13, 512, 2**13) == 1
