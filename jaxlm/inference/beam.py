"""Beam search as Transformers 5 defines it: what its scores are, which texts finish, and when a search ends.

Shape letters: B slots, N beams, K candidates, T most tokens of a text, V vocab.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.inference.processors import process, warp
from jaxlm.inference.rows import Rows, is_end, keep_done, step_stops, texts_of
from jaxlm.inference.stops import StopTable
from jaxlm.tasks.records import Generation

NEVER = np.float32(-1e9)
"""What is added to a score so that it is not chosen."""


def extend_beams(
    rows: Rows, logits: jax.Array, key: jax.Array, settings: Generation, stops: StopTable | None
) -> tuple[Rows, jax.Array]:
    """Writes one token of every running text.

    Of the best K continuations of a slot, those of the first N that end compete with the finished texts, by their
    score over length ** length_penalty; the best N of the others go on. K leaves N that go on, however many end.

    Args:
      logits: float32 [B * N, V].
    Returns:
      The rows, and for each running text the beam that it continues, int32 [B, N].
    """
    assert rows.beams is not None
    beams = rows.beams
    number = beams.scores.shape[1]
    scores, parent, token = _candidates(rows, logits, key, settings)
    state, stopped = step_stops(stops, jnp.take_along_axis(rows.stop, parent, axis=1), token)
    written = rows.step + 1
    hits = stopped | is_end(token, settings) | (written >= rows.limit)[:, None]
    texts = _pick(rows.tokens, parent)
    slots, candidates = jnp.arange(len(written))[:, None], jnp.arange(token.shape[1])[None]
    texts = texts.at[slots, candidates, (rows.prompt + rows.step)[:, None]].set(token, mode="drop")

    # Texts that go on.
    running = scores + jnp.where(hits, NEVER, 0)
    running_scores, chosen = jax.lax.top_k(running, number)
    parents = jnp.take_along_axis(parent, chosen, axis=1)

    # Texts that finish.
    powers = _powers(settings.length_penalty, rows.tokens.shape[2])
    ends = hits & (candidates < number)
    full = beams.finished.all(-1) if settings.early_stopping is True else jnp.zeros_like(beams.improves)
    final = scores / powers[written][:, None]
    final = final + jnp.where(full, NEVER, 0)[:, None] + jnp.where(beams.improves, 0, NEVER)[:, None]
    final = final + jnp.where(ends, 0, NEVER)
    merged = jnp.concatenate([beams.finished_scores, final], axis=1)
    finished_scores, kept = jax.lax.top_k(merged, number)
    lengths = jnp.broadcast_to(written[:, None], token.shape)
    finished = jnp.take_along_axis(jnp.concatenate([beams.finished, ends], axis=1), kept, axis=1)

    # Whether it is worth going on.
    ahead = rows.limit if settings.early_stopping == "never" and settings.length_penalty > 0 else written
    possible = running_scores[:, :1] / powers[ahead][:, None]
    worst = jnp.where(finished, finished_scores.min(-1, keepdims=True), NEVER)
    improves = beams.improves & (possible > worst).any(-1)
    done = ~improves | hits.all(-1)
    if settings.early_stopping is True:
        done |= finished.all(-1)

    search = beams._replace(
        scores=running_scores,
        tokens=_pick(jnp.concatenate([beams.tokens, texts], axis=1), kept),
        lengths=jnp.take_along_axis(jnp.concatenate([beams.lengths, lengths], axis=1), kept, axis=1),
        finished_scores=finished_scores,
        finished=finished,
        improves=improves,
    )
    new = rows._replace(
        step=written,
        done=done,
        tokens=_pick(texts, chosen),
        last=jnp.take_along_axis(token, chosen, axis=1),
        stop=jnp.take_along_axis(state, chosen, axis=1),
        beams=search,
    )
    return keep_done(rows, new), parents


def _candidates(
    rows: Rows, logits: jax.Array, key: jax.Array, settings: Generation
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scores, beams and tokens of the K best continuations, or of K that are drawn without replacement, [B, K] each."""
    assert rows.beams is not None
    slots, number = rows.beams.scores.shape
    vocab_size, ends = logits.shape[-1], len(settings.eos_ids)
    most = min(max(2, 1 + ends) * number, number * vocab_size)
    scores = process(jax.nn.log_softmax(logits, axis=-1), texts_of(rows), settings)
    if settings.do_sample:
        scores = warp(scores, settings, kept=max(2, ends + 1))
    scores = scores.reshape(slots, number, vocab_size) + rows.beams.scores[:, :, None]
    order = scores
    if settings.do_sample:  # the largest of perturbed scores are draws without replacement (Kool et al., 2019)
        keys = jax.vmap(lambda n, step: jax.random.fold_in(jax.random.fold_in(key, n), step))(rows.number, rows.step)
        order = scores + jax.vmap(lambda k: jax.random.gumbel(k, scores.shape[1:]))(keys)
    # Of each beam first, so that no long row is sorted.
    values, tokens = jax.lax.top_k(order, min(most, vocab_size))
    values, places = jax.lax.top_k(values.reshape(slots, -1), most)
    parent = places // tokens.shape[-1]
    token = jnp.take_along_axis(tokens.reshape(slots, -1), places, axis=1)
    if settings.do_sample:
        own = jnp.take_along_axis(scores.reshape(slots, -1), parent * vocab_size + token, axis=1)
        values = own
    return values, parent.astype(jnp.int32), token.astype(jnp.int32)


def _powers(penalty: float, most: int) -> jax.Array:
    """float32 [most + 1], each length to the power of the penalty."""
    with np.errstate(all="ignore"):
        return jnp.asarray((np.arange(most + 1, dtype=np.float64) ** penalty).astype(np.float32))


def _pick(texts: jax.Array, chosen: jax.Array) -> jax.Array:
    """[B, M, T] -> [B, N, T], the chosen texts of each slot."""
    return jax.vmap(lambda some, which: some[which])(texts, chosen)
