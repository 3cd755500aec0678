"""Logits processors: what the settings make of the scores of the next token, in the order of Transformers.

Shape letters: N texts, T their most tokens, V vocab.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.tasks.records import Generation

MINUS_INFINITY = float("-inf")


class Texts(NamedTuple):
    """What has been written so far."""

    tokens: jax.Array
    """int32 [N, T], prompt and continuation from column 0 on."""
    length: jax.Array
    """int32 [N], tokens that count."""
    step: jax.Array
    """int32 [N], those of them that were written."""
    limit: jax.Array
    """int32 [N], most tokens to write."""
    least: jax.Array
    """int32 [N], fewest tokens before a text may end."""


def process(scores: jax.Array, texts: Texts, settings: Generation) -> jax.Array:
    """Returns scores, float32 [N, V], after the settings that hold for every way of decoding."""
    if settings.repetition_penalty != 1.0:
        scores = _penalize(scores, texts, settings.repetition_penalty)
    if settings.no_repeat_ngram_size > 0:
        scores = jnp.where(_repeats(scores, texts, settings.no_repeat_ngram_size), MINUS_INFINITY, scores)
    words = tuple(word for word in settings.bad_words if word not in {(end,) for end in settings.eos_ids})
    if words:
        scores = jnp.where(_completes(scores, texts, words), MINUS_INFINITY, scores)
    ends = _marked(settings.eos_ids, scores.shape[-1])
    scores = jnp.where((texts.step < texts.least)[:, None] & ends, MINUS_INFINITY, scores)
    if settings.forced_bos_id is not None:
        scores = _forced(scores, texts.length == 1, settings.forced_bos_id)
    if settings.forced_eos_id is not None:
        scores = _forced(scores, texts.step == texts.limit - 1, settings.forced_eos_id)
    return scores


def warp(scores: jax.Array, settings: Generation, kept: int = 1) -> jax.Array:
    """Returns the scores that samples are drawn from, -inf for tokens that are never drawn.

    Top-k: Fan et al., 2018; top-p (nucleus): Holtzman et al., 2020; min-p: Nguyen et al., 2024, each over what the one
    before left.

    Args:
      kept: fewest tokens that stay.
    """
    if settings.temperature != 1.0:
        scores = scores / settings.temperature
    most = scores.shape[-1]
    top_k = min(max(settings.top_k, kept), most) if settings.top_k else most
    top_p = 1.0 if settings.top_p is None else settings.top_p
    if top_k == most and top_p >= 1.0 and settings.min_p is None:
        return scores
    few = top_k if top_p < 1.0 or top_k < most else min(kept, most)
    values = jax.lax.top_k(scores, few)[0]
    if top_k < most:
        scores = jnp.where(scores < values[:, -1:], MINUS_INFINITY, scores)
    if top_p < 1.0:
        probs = jax.nn.softmax(values, axis=-1)
        stays = (jnp.cumsum(probs, axis=-1) - probs < top_p) | (jnp.arange(few) < kept)[None]
        least = jnp.where(stays, values, jnp.inf).min(-1, keepdims=True)
        scores = jnp.where(scores < least, MINUS_INFINITY, scores)
    if settings.min_p:
        least = values[:, :1] + math.log(settings.min_p)
        least = jnp.minimum(least, values[:, min(kept, few) - 1][:, None])
        scores = jnp.where(scores < least, MINUS_INFINITY, scores)
    return scores


def _penalize(scores: jax.Array, texts: Texts, penalty: float) -> jax.Array:
    """Scores of tokens that a text has are divided, or multiplied where negative (Keskar et al., 2019)."""
    rows, columns = jnp.arange(scores.shape[0])[:, None], jnp.arange(texts.tokens.shape[1])[None]
    inside = columns < texts.length[:, None]
    has = jnp.zeros(scores.shape, bool).at[rows, texts.tokens].max(inside, mode="drop")
    return jnp.where(has, jnp.where(scores < 0, scores * penalty, scores / penalty), scores)


def _repeats(scores: jax.Array, texts: Texts, size: int) -> jax.Array:
    """True for tokens that would complete `size` tokens in a row which the text already has (Paulus et al., 2017)."""
    tokens, most = texts.tokens, texts.tokens.shape[1]
    if size > most:
        return jnp.zeros(scores.shape, bool)
    begins = jnp.arange(most - size + 1)
    matches = begins[None] + size <= texts.length[:, None]
    for offset in range(size - 1):
        own = _at(tokens, texts.length - size + 1 + offset)
        matches &= tokens[:, offset : offset + len(begins)] == own[:, None]
    rows = jnp.arange(scores.shape[0])[:, None]
    return jnp.zeros(scores.shape, bool).at[rows, tokens[:, size - 1 :]].max(matches, mode="drop")


def _completes(scores: jax.Array, texts: Texts, words: tuple[tuple[int, ...], ...]) -> jax.Array:
    """True for the last token of a word whose other tokens the text ends with."""
    banned = jnp.broadcast_to(_marked([word[0] for word in words if len(word) == 1], scores.shape[-1]), scores.shape)
    for size in sorted({len(word) for word in words} - {1}):
        group = [word for word in words if len(word) == size]
        begins = jnp.asarray([word[:-1] for word in group], jnp.int32)
        last = jnp.stack([_at(texts.tokens, texts.length - size + 1 + i) for i in range(size - 1)], 1)
        matches = (last[:, None] == begins[None]).all(-1) & (texts.length >= size - 1)[:, None]
        banned = banned.at[:, jnp.asarray([word[-1] for word in group])].max(matches)
    return banned


def _forced(scores: jax.Array, now: jax.Array, token: int) -> jax.Array:
    only = jnp.where(_marked([token], scores.shape[-1]), 0.0, MINUS_INFINITY)
    return jnp.where(now[:, None], only, scores)


def _marked(ids: tuple[int, ...] | list[int], vocab_size: int) -> jax.Array:
    """bool [1, V], True for these ids."""
    marks = np.zeros((1, vocab_size), bool)
    marks[0, list(ids)] = True
    return jnp.asarray(marks)


def _at(tokens: jax.Array, columns: jax.Array) -> jax.Array:
    """int32 [N], each text's token in its column; any where there is none."""
    return jnp.take_along_axis(tokens, jnp.maximum(columns, 0)[:, None], axis=1)[:, 0]
