"""Corruption of texts for denoising objectives: masked tokens and spans."""

from __future__ import annotations

import numpy as np

from jaxlm.tokenizer.vocabulary import MaskingVocabulary


def sample_mask_positions(
    tokens: np.ndarray, rng: np.random.Generator, vocabulary: MaskingVocabulary, *, rate: float, whole_word: bool
) -> np.ndarray:
    """Draws the columns to predict: round(rate x n) of the n ordinary tokens, at least one where there is any.

    Args:
      tokens: int32 [T], one row, padding and special tokens included.
      whole_word: take all pieces of a word or none (Devlin et al., whole-word masking). Words are taken in random
        order; one that would exceed the number is skipped, so that the result can be a few columns short.
    Returns:
      int64 [n], ascending.
    """
    ordinary = np.flatnonzero(~vocabulary.special[tokens])
    if not ordinary.size:
        return ordinary
    number = max(1, round(rate * ordinary.size))
    if not whole_word:
        return np.sort(rng.choice(ordinary, number, replace=False))
    # A word begins at a token that continues nothing, or whose neighbor on the left is not an ordinary token.
    begins = ~vocabulary.continues[tokens[ordinary]]
    begins[0] = True
    begins[1:] |= np.diff(ordinary) > 1
    words = np.split(ordinary, np.flatnonzero(begins)[1:])
    chosen: list[np.ndarray] = []
    left = number
    for i in rng.permutation(len(words)):
        if len(words[i]) <= left:
            chosen.append(words[i])
            left -= len(words[i])
        if not left:
            break
    return np.sort(np.concatenate(chosen)) if chosen else np.sort(rng.choice(ordinary, number, replace=False))


def apply_masks(
    tokens: np.ndarray,
    columns: np.ndarray,
    rng: np.random.Generator,
    vocabulary: MaskingVocabulary,
    *,
    masked: float = 0.8,
    random: float = 0.1,
) -> np.ndarray:
    """Returns `tokens` with each of the columns replaced by [MASK] or by a random ordinary token, or left unchanged.

    Args:
      masked, random: probabilities of the first two (Devlin et al., 2019, section 3.1: 80 %, 10 %, and 10 % left).
    """
    hidden = tokens.copy()
    draw = rng.random(len(columns))
    hidden[columns[draw < masked]] = vocabulary.mask_id
    swapped = columns[(draw >= masked) & (draw < masked + random)]
    ordinary = np.flatnonzero(~vocabulary.special)
    hidden[swapped] = ordinary[rng.integers(0, len(ordinary), len(swapped))]
    return hidden


def span_counts(length: int, *, density: float, mean_span: float) -> tuple[int, int]:
    """Returns how many of `length` tokens are taken out, and in how many spans.

    There is at least one token in at least one span, and one token stays.

    Raises:
      ValueError: fewer than two tokens.
    """
    if length < 2:
        raise ValueError(f"expected at least two tokens to take a span out of, found {length}")
    noise = min(max(round(length * density), 1), length - 1)
    spans = min(max(round(noise / mean_span), 1), noise, length - noise)
    return noise, spans


def corrupted_lengths(length: int, *, density: float, mean_span: float) -> tuple[int, int]:
    """Returns the lengths of the input and the target that `corrupt_spans` makes of `length` tokens, EOS included."""
    if length < 2:
        return length + 1, 1
    noise, spans = span_counts(length, density=density, mean_span=mean_span)
    return length - noise + spans + 1, noise + spans + 1


def corrupt_spans(
    tokens: np.ndarray,
    rng: np.random.Generator,
    *,
    density: float,
    mean_span: float,
    sentinels: np.ndarray,
    eos_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Replaces random spans by sentinels: T5's span corruption (Raffel et al., 2020, section 3.1.4).

    The spans' lengths, and those of the stretches between them, are uniform among all ways to write the two totals as
    sums of positive numbers; a stretch that stays comes first.

    Args:
      tokens: int32 [n]; fewer than two tokens are left whole, with an empty target.
      sentinels: ids of <extra_id_0>, <extra_id_1>, ..., in that order.
    Returns:
      The input, ending in EOS, in which the k-th span is sentinel k; and the target: each sentinel followed by its
      span, then EOS.
    Raises:
      ValueError: more spans than sentinels.
    """
    end = np.asarray([eos_id], np.int32)
    if len(tokens) < 2:
        return np.concatenate([tokens, end]).astype(np.int32), end
    noise, spans = span_counts(len(tokens), density=density, mean_span=mean_span)
    if spans > len(sentinels):
        raise ValueError(f"{len(tokens)} tokens need {spans} sentinels, the vocabulary has {len(sentinels)}")
    kept, taken = _parts(len(tokens) - noise, spans, rng), _parts(noise, spans, rng)
    pieces = np.split(tokens, np.cumsum(np.stack([kept, taken], axis=1).ravel())[:-1])
    marks = [np.asarray([s], np.int32) for s in sentinels[:spans]]
    inputs = [piece for k in range(spans) for piece in (pieces[2 * k], marks[k])]
    target = [piece for k in range(spans) for piece in (marks[k], pieces[2 * k + 1])]
    return np.concatenate([*inputs, end]).astype(np.int32), np.concatenate([*target, end]).astype(np.int32)


def _parts(total: int, number: int, rng: np.random.Generator) -> np.ndarray:
    """Returns `number` positive integers that sum to `total`, each way equally likely."""
    cuts = np.sort(rng.choice(total - 1, number - 1, replace=False)) + 1 if number > 1 else np.zeros(0, np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]]))
