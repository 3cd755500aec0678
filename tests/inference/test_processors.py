"""Logits processors against loops over lists, and stop strings."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.inference.processors import Texts, process
from jaxlm.inference.stops import make_table
from jaxlm.tasks.records import Generation

V = 9
TEXTS = [[3], [5, 6, 5], [1, 2, 3, 1, 2], [4, 4, 4, 4, 4, 4], [7, 8, 1, 7]]
WRITTEN = [0, 1, 2, 3, 3]
LIMIT = 4


def texts() -> Texts:
    tokens = np.full((len(TEXTS), 8), 3, np.int32)  # what stands behind a text is not read
    for row, text in enumerate(TEXTS):
        tokens[row, : len(text)] = text
    lengths, steps = (jnp.asarray(x, jnp.int32) for x in ([len(text) for text in TEXTS], WRITTEN))
    full = jnp.full(len(TEXTS), 1, jnp.int32)
    return Texts(jnp.asarray(tokens), lengths, steps, LIMIT * full, 2 * full)


def banned(text: list[int], size: int) -> set[int]:
    grams = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
    return {gram[-1] for gram in grams if list(gram[:-1]) == (text[-(size - 1) :] if size > 1 else [])}


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_no_repeat_ngram(size):
    out = np.asarray(process(jnp.zeros((5, V)), texts(), Generation(no_repeat_ngram_size=size)))
    assert [set(np.flatnonzero(np.isinf(row))) for row in out] == [banned(text, size) for text in TEXTS]


def test_settings_of_single_tokens():
    scores = jnp.tile(jnp.asarray([[2.0, -2.0] * 4 + [0.0]]), (5, 1))
    out = np.asarray(process(scores, texts(), Generation(repetition_penalty=2.0)))
    for row, text in zip(out, TEXTS, strict=True):
        expected = [(x / 2 if x > 0 else x * 2) if i in text else x for i, x in enumerate([2.0, -2.0] * 4 + [0.0])]
        assert row.tolist() == expected
    words = ((8,), (0,), (6, 5), (2, 3), (5, 6, 5, 1), (1, 7, 4))
    out = np.asarray(process(scores, texts(), Generation(bad_words=words, eos_ids=(0,))))
    lost = [set(np.flatnonzero(np.isinf(row))) for row in out]
    # An end is never a bad word, and is barred from the first two tokens alone.
    assert lost == [{0, 8}, {0, 8, 1}, {8, 3}, {8}, {8, 4}]
    out = np.asarray(process(scores, texts(), Generation(forced_bos_id=4, forced_eos_id=0, eos_ids=(0, 5))))
    only = [np.flatnonzero(np.isfinite(row)).tolist() for row in out]
    assert only[0] == [4] and only[3] == only[4] == [0] and out[0, 4] == out[3, 0] == 0.0
    assert only[1] == [1, 2, 3, 4, 6, 7, 8] and only[2] == list(range(9))


@pytest.mark.parametrize(
    ("strings", "pieces", "ends"),
    [
        (["stop"], ["a st", "op", "x"], [False, True, False]),
        (["stop"], ["s", "st", "o", "p!"], [False, False, False, True]),
        (["b"], ["abc", "d"], [True, False]),
        (["aab"], ["a", "a", "ab"], [False, False, True]),
        (["\n\n", "END"], ["x\n", "\nEN", "D"], [False, True, True]),
        (["。"], ["好", "。好"], [False, True]),
        (["abcab"], ["abc", "", "abcab"], [False, False, True]),
        (["ab"], ["a", "xab", "b"], [False, True, False]),
    ],
)
def test_a_stop_string_ends_in_the_token_that_completes_it(strings, pieces, ends):
    vocabulary = sorted(set(pieces))
    table = make_table(strings, vocabulary)
    state, found = 0, []
    for piece in pieces:
        token = vocabulary.index(piece)
        found.append(bool(table.ends[state, token]))
        state = int(table.following[state, token])
    assert found == ends
    assert table.after([vocabulary.index(piece) for piece in pieces]) == state
