"""Text written token by token: prompts in, continuations out, by any model that has a cache."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.models import Model


class Sampling(NamedTuple):
    """How a token is drawn from the logits."""

    temperature: float = 1.0
    """Divides the logits; 0: the likeliest token."""
    top_k: int | None = None
    """Draw from so many likeliest tokens only (Fan et al., 2018)."""
    top_p: float | None = None
    """Draw from the fewest likeliest tokens that hold so much of the probability (Holtzman et al., 2020)."""


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    eos_id: int | Sequence[int] | None = None,
    pad_id: int = 0,
    seed: int = 0,
    prefix: bool = False,
    batch_size: int = 32,
) -> list[list[int]]:
    """Continues each prompt.

    What a prompt is continued with depends on its index and the seed, not on the other prompts or on `batch_size`.
    Prompts of similar length are written together; lengths and numbers of rows are rounded up, so that few shapes are
    compiled.

    Args:
      max_new_tokens: most tokens of a continuation.
      temperature, top_k, top_p: as in `Sampling`.
      eos_id: token or tokens that end a text; None: each continuation has `max_new_tokens` tokens.
      pad_id: any id of the vocabulary; never returned.
      prefix: each token of a prompt reads the whole prompt, as prefix language models are trained.
      batch_size: most prompts that are continued at once.
    Returns:
      For each prompt the new tokens alone, the one that ended the text included.
    Raises:
      UserError: the model cannot generate, an empty prompt, or one too long for the model, or settings out of range.
    """
    _check(model, prompts, max_new_tokens, temperature, top_k, top_p)
    if prefix and "prefix" not in model.family.inputs:
        raise UserError(f"model family {model.family.name!r} reads from left to right alone; expected prefix=False")
    ends = () if eos_id is None else (eos_id,) if isinstance(eos_id, int) else tuple(eos_id)
    sampling = Sampling(float(temperature), top_k, top_p)
    written: list[list[int]] = [[] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        shards = model.compute.rules.num_batch_shards
        rows = -(-(1 << (len(chosen) - 1).bit_length()) // shards) * shards
        width = _round_up(len(prompts[chosen[0]]))
        tokens, lengths, numbers = np.full((rows, width), pad_id), np.zeros(rows), np.zeros(rows)
        for row, number in enumerate(chosen):
            length = len(prompts[number])
            tokens[row, width - length :] = prompts[number]
            lengths[row], numbers[row] = length, number
        arrays = _place((tokens, lengths, numbers), model)
        new, counts = _generate_batch(
            params, *arrays, np.int32(max_new_tokens), jax.random.key(seed),
            model=model, sampling=sampling, ends=ends, pad_id=pad_id, prefix=prefix, room=_round_up(max_new_tokens),
        )  # fmt: skip
        new, counts = np.asarray(new), np.asarray(counts)
        for row, number in enumerate(chosen):
            written[number] = new[row, : counts[row]].tolist()
    return written


def sample_token(logits: jax.Array, keys: jax.Array, sampling: Sampling) -> jax.Array:
    """Draws a token of each row: int32 [R] from float32 [R, V], with one key to a row."""
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


@partial(jax.jit, static_argnames=("model", "sampling", "ends", "pad_id", "prefix", "room"))
def _generate_batch(
    params: Any,
    tokens: jax.Array,
    lengths: jax.Array,
    numbers: jax.Array,
    limit: jax.Array,
    key: jax.Array,
    *,
    model: Model,
    sampling: Sampling,
    ends: tuple[int, ...],
    pad_id: int,
    prefix: bool,
    room: int,
) -> tuple[jax.Array, jax.Array]:
    """Reads the prompts at once, then writes token by token until every text has ended.

    Args:
      tokens: int32 [R, P], padded on the left.
      lengths: int32 [R]; 0 for a row that only fills the batch.
      numbers: int32 [R], what tells the rows' random numbers apart.
      limit: int32 [], most tokens to write, at most `room`.
    Returns:
      int32 [R, room], and how many of each row count, int32 [R].
    """
    rows, width = tokens.shape
    column = jnp.arange(width, dtype=jnp.int32)[None] - (width - lengths)[:, None]
    inside = (column >= 0).astype(jnp.int32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)

    def draw(outputs: Any, step: Any, done: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = sample_token(outputs.logits()[:, 0], jax.vmap(jax.random.fold_in, (0, None))(keys, step), sampling)
        ended = (new[:, None] == jnp.asarray(ends, jnp.int32)[None]).any(-1)
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
        params, tokens, inside, jnp.maximum(column, 0), cache, prefix=inside if prefix else None
    )
    filler = lengths == 0
    token, done = draw(outputs, 0, filler)
    new = jnp.full((rows, room), pad_id, jnp.int32).at[:, 0].set(token)
    state = (jnp.int32(1), token, done, new, (~filler).astype(jnp.int32), cache)
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


def _check(
    model: Model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    if model.family.init_cache is None:
        raise UserError(f"model family {model.family.name!r} cannot generate text")
    if model.head != "causal_lm":
        raise UserError(f"a model with a {model.head} head cannot continue texts; expected one with a causal_lm head")
    for name, value, fits, wanted in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, temperature >= 0, "0 or more"),
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
