"""The state of texts that are being written, one slot to a row, and the writing of one token without beams.

Shape letters: B slots, N beams of each, T most tokens of a text, V vocab.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.inference.processors import Texts, process, warp
from jaxlm.inference.stops import StopTable
from jaxlm.tasks.records import Generation

NO_TOKEN = -1
"""Ends a text, of one beam, where the scores of the next token are no numbers."""


class Beams(NamedTuple):
    """What beam search holds beside the running texts: the best finished ones, best first."""

    scores: jax.Array
    """float32 [B, N], log probabilities of the running texts, best first."""
    tokens: jax.Array
    """int32 [B, N, T], finished texts."""
    lengths: jax.Array
    """int32 [B, N], tokens that each of them has written."""
    finished_scores: jax.Array
    """float32 [B, N], over a power of the length; about -1e9 where there is no text yet."""
    finished: jax.Array
    """bool [B, N]."""
    improves: jax.Array
    """bool [B], whether a running text may still become better than the worst finished one."""


class Rows(NamedTuple):
    """The slots."""

    number: jax.Array
    """int32 [B], what tells the rows' random numbers apart."""
    prompt: jax.Array
    """int32 [B], tokens of the prompt."""
    limit: jax.Array
    """int32 [B], most tokens to write."""
    least: jax.Array
    """int32 [B], fewest tokens before the text may end."""
    step: jax.Array
    """int32 [B], tokens written."""
    done: jax.Array
    """bool [B], nothing more is written; True for an empty slot."""
    tokens: jax.Array
    """int32 [B, N, T], prompt and continuation from column 0 on."""
    last: jax.Array
    """int32 [B, N], the token that the model reads next."""
    stop: jax.Array
    """int32 [B, N], state of `stops.StopTable`."""
    beams: Beams | None = None


class Prompts(NamedTuple):
    """Prompts that move into slots; R of them, as int32 arrays."""

    tokens: Any
    """[R, W], padded on the left."""
    length: Any
    """[R]; 0 for a row that only fills the batch."""
    number: Any
    limit: Any
    least: Any
    stop: Any


def new_rows(prompts: Prompts, most: int, beams: int) -> Rows:
    """Returns rows whose texts are the prompts.

    Args:
      most: T.
    """
    rows, width = prompts.tokens.shape
    columns = jnp.arange(width, dtype=jnp.int32)[None] + (width - prompts.length)[:, None]
    text = jnp.take_along_axis(prompts.tokens, columns, axis=1, mode="clip")
    text = jnp.pad(text, ((0, 0), (0, most - width)))
    tokens = jnp.broadcast_to(text[:, None], (rows, beams, most))
    zeros, none = jnp.zeros((rows, beams), jnp.int32), jnp.zeros((rows, beams), bool)
    search = None
    if beams > 1:
        # All texts are the same at first: only the continuations of one count.
        scores = jnp.full((rows, beams), -1e9, jnp.float32)
        first = jnp.where((jnp.arange(beams) == 0)[None], 0.0, scores)
        search = Beams(first, tokens, zeros, scores, none, jnp.ones(rows, bool))
    stop = jnp.broadcast_to(prompts.stop[:, None], (rows, beams))
    step, done = jnp.zeros(rows, jnp.int32), prompts.length == 0
    return Rows(prompts.number, prompts.length, prompts.limit, prompts.least, step, done, tokens, zeros, stop, search)


def texts_of(rows: Rows) -> Texts:
    """Returns what processors read, a text to each beam."""
    slots, beams, most = rows.tokens.shape
    each = (jnp.repeat(x, beams) for x in (rows.prompt + rows.step, rows.step, rows.limit, rows.least))
    return Texts(rows.tokens.reshape(slots * beams, most), *each)


def write_token(rows: Rows, logits: jax.Array, key: jax.Array, settings: Generation, stops: StopTable | None) -> Rows:
    """Writes one token of each text, the likeliest or a drawn one.

    What is drawn depends on the row's number, its step and the key alone.

    Args:
      logits: float32 [B, V].
    """
    scores = process(logits, texts_of(rows), settings)
    if settings.do_sample:
        keys = jax.vmap(lambda number, step: jax.random.fold_in(jax.random.fold_in(key, number), step))(
            rows.number, rows.step
        )
        token = jax.vmap(jax.random.categorical)(keys, warp(scores, settings)).astype(jnp.int32)
    else:
        token = scores.argmax(-1).astype(jnp.int32)
    best = jnp.take_along_axis(scores, token[:, None], axis=1)[:, 0]
    token = jnp.where(jnp.isnan(best), NO_TOKEN, token)  # NaN is the largest of all to argmax
    state, ended = step_stops(stops, rows.stop, token[:, None])
    ended = ended[:, 0] | is_end(token, settings) | (rows.step + 1 >= rows.limit) | (token == NO_TOKEN)
    tokens = rows.tokens.at[jnp.arange(len(token)), 0, rows.prompt + rows.step].set(token, mode="drop")
    new = rows._replace(step=rows.step + 1, done=ended, tokens=tokens, last=token[:, None], stop=state)
    return keep_done(rows, new)


def keep_done(old: Rows, new: Rows) -> Rows:
    """Returns the new rows, but the old ones where nothing more is written."""

    def choose(before: jax.Array, after: jax.Array) -> jax.Array:
        return jnp.where(old.done.reshape(-1, *(1,) * (after.ndim - 1)), before, after)

    return jax.tree.map(choose, old, new)


def is_end(token: jax.Array, settings: Generation) -> jax.Array:
    """Returns whether a token ends the text, bool of its shape."""
    ends = jnp.asarray(settings.eos_ids, jnp.int32).reshape((1,) * token.ndim + (-1,))
    return (token[..., None] == ends).any(-1)


def step_stops(stops: StopTable | None, state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the state of the stop strings after a token, and whether one is complete."""
    if stops is None:
        return state, jnp.zeros(token.shape, bool)
    return jnp.asarray(stops.following)[state, token], jnp.asarray(stops.ends)[state, token]
