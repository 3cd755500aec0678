"""What pretraining takes out of a text: counted, drawn as often as it should be, and put back exactly."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from jaxlm.data.corpus.masking import apply_masks, corrupt_spans, corrupted_lengths, sample_mask_positions, span_counts
from jaxlm.tokenizer.vocabulary import MaskingVocabulary

MASK, SIZE = 4, 100
VOCABULARY = MaskingVocabulary(MASK, np.arange(SIZE) < 5, np.arange(SIZE) >= 80)
"""0..4 are special, 80..99 continue a word."""


def generator(seed=0):
    return np.random.default_rng(seed)


def ordinary(length, seed=0, low=5, high=80):
    return generator(seed).integers(low, high, length).astype(np.int32)


def test_special_tokens_are_never_chosen_and_the_number_is_exact():
    row = np.concatenate([[2], ordinary(40), [3, 2], ordinary(20, 1), [3]]).astype(np.int32)
    for seed in range(50):
        columns = sample_mask_positions(row, generator(seed), VOCABULARY, rate=0.15, whole_word=False)
        assert len(columns) == 9 == round(0.15 * 60)
        assert (np.diff(columns) > 0).all() and (row[columns] >= 5).all()
    assert (
        len(sample_mask_positions(row[:3], generator(), VOCABULARY, rate=0.15, whole_word=False)) == 1
    )  # at least one
    assert (
        len(sample_mask_positions(np.asarray([2, 3], np.int32), generator(), VOCABULARY, rate=0.15, whole_word=True))
        == 0
    )


def test_every_token_is_chosen_equally_often():
    row = np.concatenate([[2], ordinary(30), [3]]).astype(np.int32)
    draws = [sample_mask_positions(row, generator(s), VOCABULARY, rate=0.2, whole_word=False) for s in range(4000)]
    shares = np.bincount(np.concatenate(draws), minlength=32) / 4000
    assert shares[0] == shares[31] == 0
    assert np.abs(shares[1:31] - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 4000)


def test_whole_words_are_taken_or_left():
    # [CLS] a ##b c ##d ##e [SEP] [CLS] ##f g [SEP]: "##f" continues nothing that may be masked.
    row = np.asarray([2, 10, 80, 11, 81, 82, 3, 2, 83, 12, 3], np.int32)
    words = [{1, 2}, {3, 4, 5}, {8}, {9}]
    seen = set()
    for seed in range(200):
        chosen = set(sample_mask_positions(row, generator(seed), VOCABULARY, rate=0.5, whole_word=True).tolist())
        assert 1 <= len(chosen) <= round(0.5 * 7)
        assert all(word <= chosen or not word & chosen for word in words)
        seen |= chosen
    assert seen == set.union(*words)


def test_a_word_longer_than_the_number_is_masked_in_part():
    row = np.asarray([10, 80, 81, 82, 83, 84], np.int32)
    columns = sample_mask_positions(row, generator(), VOCABULARY, rate=0.2, whole_word=True)
    assert len(columns) == 1


def test_eighty_ten_ten():
    row = ordinary(20000)
    columns = np.arange(0, 20000, 2)
    hidden = apply_masks(row, columns, generator(1), VOCABULARY)
    np.testing.assert_array_equal(hidden[1::2], row[1::2])  # the others are untouched
    masked = (hidden[columns] == MASK).mean()
    left = (hidden[columns] == row[columns]).mean()
    swapped = hidden[columns][(hidden[columns] != MASK) & (hidden[columns] != row[columns])]
    five = 5 * np.sqrt(0.8 * 0.2 / len(columns))
    assert abs(masked - 0.8) < five
    assert abs(left - 0.1 - 0.1 / 95) < five  # a random token may be the same
    assert swapped.min() >= 5 and len(np.unique(swapped)) == 95  # any ordinary token, no special one
    assert (row == ordinary(20000)).all()  # and the input is not changed in place


def test_hiding_by_hand():
    class Draws(np.random.Generator):
        """Draws 0.1, 0.85 and 0.95, and then the eighth ordinary token."""

        def random(self, number):
            return np.asarray([0.1, 0.85, 0.95])[:number]

        def integers(self, low, high, number):
            assert (low, high, number) == (0, 95, 1)
            return np.asarray([7])

    row = np.asarray([20, 21, 22, 23], np.int32)
    assert apply_masks(row, np.asarray([0, 1, 3]), Draws(np.random.PCG64()), VOCABULARY).tolist() == [MASK, 12, 22, 23]


# Span corruption.

SENTINELS = np.asarray([99, 98, 97, 96, 95, 94, 93, 92, 91, 90])
T5 = {"density": 0.15, "mean_span": 3.0, "sentinels": SENTINELS, "eos_id": 1}


def restore(inputs: np.ndarray, target: np.ndarray) -> list[int]:
    """The inverse, written by itself: every sentinel of the input replaced by what follows it in the target."""
    spans: dict[int, list[int]] = {}
    current = -1
    for token in target[:-1].tolist():
        if token in SENTINELS:
            current = token
            spans[current] = []
        else:
            spans[current].append(token)
    return list(itertools.chain.from_iterable(spans.get(token, [token]) for token in inputs[:-1].tolist()))


@pytest.mark.parametrize("length", [2, 3, 7, 20, 64, 149])
def test_spans_are_put_back_exactly(length):
    for seed in range(20):
        tokens = ordinary(length, seed, 5, 90)
        inputs, target = corrupt_spans(tokens, generator(seed), **T5)
        assert restore(inputs, target) == tokens.tolist()
        assert (len(inputs), len(target)) == corrupted_lengths(length, density=0.15, mean_span=3.0)
        assert inputs[-1] == target[-1] == 1
        used = [t for t in inputs.tolist() if t in SENTINELS]
        assert used == SENTINELS[: len(used)].tolist() == [t for t in target.tolist() if t in SENTINELS]
        assert inputs[0] == tokens[0] and target[0] == 99  # a stretch that stays comes first


def test_a_span_by_hand():
    class Draws(np.random.Generator):
        """Cuts the kept 6 of 8 tokens after the second, and the 2 taken after the first."""

        cuts = iter([[1], [0]])

        def choice(self, number, size, replace):
            assert not replace and size == 1
            return np.asarray(next(self.cuts))

    tokens = np.arange(10, 18, dtype=np.int32)
    settings = {**T5, "density": 0.25, "mean_span": 1.0}
    inputs, target = corrupt_spans(tokens, Draws(np.random.PCG64()), **settings)
    assert inputs.tolist() == [10, 11, 99, 13, 14, 15, 16, 98, 1]
    assert target.tolist() == [99, 12, 98, 17, 1]


def test_density_mean_span_and_places_are_as_asked():
    assert span_counts(512, density=0.15, mean_span=3.0) == (77, 26)
    assert span_counts(2, density=0.15, mean_span=3.0) == (1, 1)
    taken, lengths = np.zeros(60), []
    for seed in range(3000):
        inputs, target = corrupt_spans(np.arange(200, 260, dtype=np.int32), generator(seed), **T5)
        spans = np.split(target, np.flatnonzero(np.isin(target, SENTINELS)))[1:]
        spans = [span[(span >= 200)] for span in spans]
        assert len(spans) == 3
        lengths.extend(map(len, spans))
        taken[np.concatenate(spans) - 200] += 1
    assert taken.sum() / 3000 == 9 == round(0.15 * 60)
    assert np.mean(lengths) == 3.0 and {1, 2, 3, 4, 5, 6, 7} == set(lengths)
    assert taken[0] == 0 and taken[-1] > 0
    # Each composition of 9 into 3 parts is as likely as any other: a span of 7 stands with two of 1, 3 of 28 ways.
    share = np.mean(np.asarray(lengths).reshape(-1, 3).max(1) == 7)
    assert abs(share - 3 / 28) < 5 * np.sqrt(3 / 28 * 25 / 28 / 3000)


def test_too_few_sentinels_and_tokens():
    with pytest.raises(ValueError, match="400 tokens need 20 sentinels, the vocabulary has 10"):
        corrupt_spans(np.zeros(400, np.int32), generator(), **T5)
    inputs, target = corrupt_spans(np.asarray([7], np.int32), generator(), **T5)
    assert inputs.tolist() == [7, 1] and target.tolist() == [1]
