"""Beam search over a table of probabilities, against all texts that there are."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.inference.beam import extend_beams
from jaxlm.inference.rows import Prompts, new_rows
from jaxlm.inference.slots import read_texts
from jaxlm.tasks.records import Generation

V, END, LIMIT = 4, 0, 3
LOGITS = np.random.default_rng(0).normal(0, 1.5, (2, V, V)).astype(np.float32)
"""Of the next token after each, for two slots."""


def search(settings: Generation):
    """The texts of two slots whose prompts are [1] and [2, 3]."""
    ones = jnp.ones(2, jnp.int32)
    prompts = Prompts(jnp.asarray([[9, 1], [2, 3]]), jnp.asarray([1, 2]), 0 * ones, LIMIT * ones, 0 * ones, 0 * ones)
    rows = new_rows(prompts, 2 + LIMIT, settings.num_beams)
    last = jnp.broadcast_to(jnp.asarray([[1], [3]]), rows.last.shape)
    for _ in range(LIMIT):
        logits = jnp.asarray(LOGITS)[jnp.arange(2)[:, None], last].reshape(-1, V)
        rows, _ = extend_beams(rows, logits, jax.random.key(0), settings, None)
        last = rows.last
    assert rows.done.all()
    found = jax.device_get(rows)
    return [read_texts(found, slot, settings) for slot in range(2)]


def all_texts(slot: int, last: int, penalty: float) -> list[tuple[float, list[int]]]:
    """Every text that ends by itself or at the limit, and its score; best first."""
    logp = np.asarray(jax.nn.log_softmax(jnp.asarray(LOGITS[slot]), axis=-1))
    found = []
    for length in range(1, LIMIT + 1):
        for text in map(list, itertools.product(range(V), repeat=length)):
            if END in text[:-1] or length < LIMIT and text[-1] != END:
                continue
            score = sum(logp[a, b] for a, b in itertools.pairwise([last, *text]))
            found.append((float(score) / length**penalty, text))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, -0.5])
def test_beams_enough_for_all_texts_find_the_best(penalty):
    settings = Generation(
        num_beams=27, num_return_sequences=5, length_penalty=penalty, early_stopping="never", eos_ids=(END,)
    )
    for slot, (texts, last) in enumerate(zip(search(settings), (1, 3), strict=True)):
        expected = all_texts(slot, last, penalty)[:5]
        assert [text.tokens for text in texts] == [text for _, text in expected]
        assert [text.score for text in texts] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_samples_of_beams_are_drawn_without_replacement():
    settings = Generation(num_beams=3, num_return_sequences=3, do_sample=True, eos_ids=(END,))
    for texts in search(settings):
        assert len({tuple(text.tokens) for text in texts}) == 3
