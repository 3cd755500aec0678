"""Text written token by token: prompts in, continuations out, by any model that has a cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.models import Model
from jaxlm.tasks.records import Generation

BATCH_SIZE = 32
"""Most prompts that are continued at once."""


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    pad_id: int = 0,
    first_number: int = 0,
) -> list[list[int]]:
    """Continues each prompt.

    What a prompt is continued with depends on its number and the seed, not on the other prompts. Prompts of similar
    length are written together, `BATCH_SIZE` at once; lengths and numbers of rows are rounded up, so that few shapes
    are compiled.

    Args:
      settings: lengths, sampling, the ids that end a text (none: each continuation has `max_new_tokens` tokens).
      pad_id: any id of the vocabulary; never returned.
      first_number: number of the first prompt.
    Returns:
      For each prompt the new tokens alone, the one that ended the text included.
    Raises:
      UserError: the model cannot generate, an empty prompt, or one too long for the model, or settings out of range.
    """
    _check(model, prompts, settings)
    written: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for start in range(0, len(order), BATCH_SIZE):
        chosen = order[start : start + BATCH_SIZE]
        shards = model.compute.rules.num_batch_shards
        rows = -(-(1 << (len(chosen) - 1).bit_length()) // shards) * shards
        width = _round_up(len(prompts[chosen[0]]))
        tokens, lengths, numbers = np.full((rows, width), pad_id), np.zeros(rows), np.zeros(rows)
        for row, i in enumerate(chosen):
            length = len(prompts[i])
            tokens[row, width - length :] = prompts[i]
            lengths[row], numbers[row] = length, first_number + i
        new, counts = generate_batch(
            params,
            *_place((tokens, lengths, numbers), model),
            np.int32(settings.max_new_tokens),
            jax.random.key(settings.seed),
            model=model,
            settings=settings._replace(max_new_tokens=_round_up(settings.max_new_tokens), seed=0),
            pad_id=pad_id,
        )
        new, counts = np.asarray(new), np.asarray(counts)
        for row, i in enumerate(chosen):
            written[i] = new[row, : counts[row]].tolist()
    return written


def sample_token(logits: jax.Array, keys: jax.Array, sampling: Generation) -> jax.Array:
    """Draws a token of each row: int32 [B] from float32 [B, V], with one key to a row.

    Top-k: Fan et al., 2018; top-p (nucleus): Holtzman et al., 2020.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k is None and sampling.top_p is None:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    most = logits.shape[-1]
    values, ids = jax.lax.top_k(logits, most if sampling.top_k is None else min(sampling.top_k, most))
    if sampling.top_p is not None:
        probs = jax.nn.softmax(values, axis=-1)
        likelier = jnp.cumsum(probs, axis=-1) - probs
        values = jnp.where(likelier < sampling.top_p, values, -jnp.inf)
    picked = jax.vmap(jax.random.categorical)(keys, values)
    return jnp.take_along_axis(ids, picked[:, None], axis=-1)[:, 0].astype(jnp.int32)


@partial(jax.jit, static_argnames=("model", "settings", "pad_id"))
def generate_batch(
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    row_ids: jax.Array,
    limit: jax.Array,
    key: jax.Array,
    *,
    model: Model,
    settings: Generation,
    pad_id: int,
) -> tuple[jax.Array, jax.Array]:
    """Reads the prompts at once, then writes token by token until every text has ended.

    Args:
      tokens: int32 [B, P], padded on the left.
      lengths: int32 [B]; 0 for a row that only fills the batch.
      row_ids: int32 [B], what tells the rows' random numbers apart.
      limit: int32 [], most tokens to write, at most `settings.max_new_tokens`.
    Returns:
      int32 [B, settings.max_new_tokens], and how many of each row count, int32 [B].
    """
    room = settings.max_new_tokens
    rows, width = tokens.shape
    column = jnp.arange(width, dtype=jnp.int32)[None] - (width - lengths)[:, None]
    inside = (column >= 0).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, row_ids)

    def draw(outputs: Any, step: Any, done: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = sample_token(outputs.logits()[:, 0], jax.vmap(jax.random.fold_in, (0, None))(keys, step), settings)
        ended = (new[:, None] == jnp.asarray(settings.eos_ids, jnp.int32)[None]).any(-1)
        return jnp.where(done, pad_id, new), done | ended

    def unfinished(state: Any) -> jax.Array:
        step, _, done, *_ = state
        return (step < limit) & ~done.all()

    def write(state: Any) -> Any:
        step, token, done, new, counts, cache = state
        position = (lengths + step - 1)[:, None]
        outputs, cache = model.decode(params, token[:, None], jnp.ones_like(position), position, cache)
        token, ended = draw(outputs, step, done)
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        return step + 1, token, ended, new, counts + (~done).astype(jnp.int32), cache

    cache = model.init_cache(rows, width + room)
    outputs, cache = model.decode(
        params, tokens, inside, jnp.maximum(column, 0), cache, prefix=inside if settings.prefix else None
    )
    is_padding = lengths == 0
    token, done = draw(outputs, 0, is_padding)
    new = jnp.full((rows, room), pad_id, jnp.int32).at[:, 0].set(token)
    state = (jnp.int32(1), token, done, new, (~is_padding).astype(jnp.int32), cache)
    _, _, _, new, counts, _ = jax.lax.while_loop(unfinished, write, state)
    if model.compute.rules.mesh is not None:  # every process returns all texts
        new, counts = (jax.lax.with_sharding_constraint(x, model.compute.rules.sharding(())) for x in (new, counts))
    return new, counts


def _place(arrays: Sequence[np.ndarray], model: Model) -> list[jax.Array]:
    """int32 arrays whose rows are split over the model's mesh."""
    rules = model.compute.rules
    arrays = [np.asarray(x, np.int32) for x in arrays]
    if rules.mesh is None:
        return [jnp.asarray(x) for x in arrays]
    shardings = [rules.sharding(("batch", "length")[: x.ndim], x.shape) for x in arrays]
    return [
        jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index])
        for x, sharding in zip(arrays, shardings, strict=True)
    ]


def _round_up(length: int) -> int:
    """To a multiple of 16, and from 128 on of an eighth to a quarter of the length: four shapes to each doubling."""
    step = max(16, (1 << length.bit_length()) >> 3)
    return -(-length // step) * step


def _check(model: Model, prompts: Sequence[Sequence[int]], settings: Generation) -> None:
    if model.family.init_cache is None:
        raise UserError(f"model family {model.family.name!r} cannot generate text")
    if model.head != "causal_lm":
        raise UserError(f"a model with a {model.head} head cannot continue texts; expected one with a causal_lm head")
    if settings.prefix and "prefix" not in model.family.inputs:
        raise UserError(f"model family {model.family.name!r} reads from left to right alone; expected prefix=False")
    max_new_tokens, top_k, top_p = settings.max_new_tokens, settings.top_k, settings.top_p
    for name, value, fits, wanted in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", settings.temperature, settings.temperature >= 0, "0 or more"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "more than 0 and at most 1"),
    ):
        if not fits:
            raise UserError(f"{name}={value}: expected {wanted}")
    most, vocab_size = model.config.max_positions, model.config.vocab_size
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {number} is empty; expected at least one token, such as the tokenizer's first")
        if len(prompt) + max_new_tokens > most:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens: with max_new_tokens={max_new_tokens} more it does not fit "
                f"the model's {most} positions"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise UserError(f"prompt {number} has a token outside the model's vocabulary of {vocab_size}")
