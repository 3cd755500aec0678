"""The compiled steps of generation: prompts move into slots, all slots write, and the cache's columns are shifted.

All slots share the cache's columns. A prompt that moves in lies before the next column, so that the slots go on side by
side. `fill` is compiled for each width of prompts, `run`, `shift`, `widen` and `empty_slots` once for each `Plan`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.inference.beam import extend_beams
from jaxlm.inference.cache_rows import add_columns, put_encoded, put_prompts, shift_columns, take_beams
from jaxlm.inference.rows import Prompts, Rows, new_rows, write_token
from jaxlm.inference.stops import StopTable
from jaxlm.models import Model
from jaxlm.nn.attention import KVCache
from jaxlm.parallel.sharding import Rules, constrain
from jaxlm.tasks.records import Generation


class Plan(NamedTuple):
    """What is static: it decides the compiled shapes."""

    model: Model
    settings: Generation
    """Without what is data: seed, lengths, stop strings."""
    slots: int
    group: int
    """Prompts that move in at once."""
    width: int
    """Columns of the longest prompt."""
    room: int
    """Most tokens to write."""
    columns: int
    """Of the cache; all of a text's fit into `most_columns`."""
    most_columns: int
    """Beyond those of one text, some are spare, so that they are seldom shifted."""
    source_width: int = 0
    """Columns that an encoder reads; 0: there is no encoder."""
    pad_id: int = 0

    @property
    def beams(self) -> int:
        return self.settings.num_beams


class Fixed(NamedTuple):
    """What the compiled functions read and never change."""

    params: Any
    key: jax.Array
    stops: StopTable | None = None


class Carry(NamedTuple):
    """What they change."""

    rows: Rows
    cache: Any
    encoded: Any
    """What `Model.encode` gave, a row to each slot, which its beams share; None without an encoder."""
    column: jax.Array
    """int32 [], the next column of the cache."""


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("carry",))
def fill(
    fixed: Fixed, carry: Carry, prompts: Prompts, slots: jax.Array, source: tuple[jax.Array, ...] | None, *, plan: Plan
) -> Carry:
    """Reads prompts at once, writes the first token of each, and puts them into slots.

    Args:
      slots: int32 [R]; one that is not there takes none.
      source: tokens of the encoder and where they count, int32 [R, S] each.
    """
    model, beams = plan.model, plan.beams
    number, width = prompts.tokens.shape
    column = jnp.arange(width, dtype=jnp.int32)[None] - (width - prompts.length)[:, None]
    inside = (column >= 0).astype(jnp.int32)
    reads: dict[str, Any] = {"prefix": inside} if plan.settings.prefix else {}
    if source is not None:
        reads["encoded"] = _encode(model, fixed.params, *source)
    outputs, cache = model.decode(
        fixed.params, prompts.tokens, inside, jnp.maximum(column, 0), model.init_cache(number, width), **reads
    )
    rows = new_rows(prompts, plan.width + plan.room, beams)
    rows, _ = _write(rows, jnp.repeat(outputs.logits()[:, 0], beams, axis=0), fixed, plan)
    into = (slots[:, None] * beams + jnp.arange(beams, dtype=jnp.int32)[None]).reshape(-1)
    of = jnp.repeat(jnp.arange(number, dtype=jnp.int32), beams)
    every = jax.tree.map(lambda whole, new: whole.at[slots].set(new, mode="drop"), carry.rows, rows)
    cache = put_prompts(carry.cache, _repeat_rows(cache, of), into, carry.column)
    encoded = carry.encoded
    if source is not None:
        encoded = put_encoded(encoded, reads["encoded"], slots)
    return _pinned(Carry(every, cache, encoded, carry.column), model.compute.rules)


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("carry",))
def run(fixed: Fixed, carry: Carry, enough: jax.Array, steps: jax.Array, *, plan: Plan) -> tuple[Carry, Rows]:
    """Writes token by token.

    Args:
      enough: int32 [], slots that are done when it ends.
      steps: int32 [], most tokens.
    Returns:
      What `fill` and `run` go on from, and the rows for every process to read.
    """
    model, beams = plan.model, plan.beams
    reads = {} if carry.encoded is None else {"encoded": carry.encoded}

    def goes_on(state: Any) -> jax.Array:
        step, rows, _, column = state
        return (step < steps) & (column < plan.columns) & (rows.done.sum() < enough) & ~rows.done.all()

    def write(state: Any) -> Any:
        step, rows, cache, column = state
        position = jnp.repeat(jnp.maximum(rows.prompt + rows.step - 1, 0), beams)[:, None]
        tokens = rows.last.reshape(-1, 1)
        outputs, cache = model.decode(fixed.params, tokens, jnp.ones_like(tokens), position, cache, **reads)
        rows, parents = _write(rows, outputs.logits()[:, 0], fixed, plan)
        if parents is not None:
            cache = take_beams(cache, parents)
        return step + 1, rows, cache, column + 1

    state = (jnp.int32(0), carry.rows, carry.cache, carry.column)
    _, rows, cache, column = jax.lax.while_loop(goes_on, write, state)
    carry = _pinned(Carry(rows, cache, carry.encoded, column), model.compute.rules)
    return carry, jax.tree.map(lambda x: constrain(x, (None,) * x.ndim, model.compute.rules), rows)


@partial(jax.jit, static_argnames=("plan",), donate_argnames=("carry",))
def shift(carry: Carry, columns: jax.Array, *, plan: Plan) -> Carry:
    """Drops the first columns of the cache."""
    cache = shift_columns(carry.cache, columns)
    return _pinned(carry._replace(cache=cache, column=carry.column - columns), plan.model.compute.rules)


@partial(jax.jit, static_argnames=("plan",))
def widen(carry: Carry, *, plan: Plan) -> Carry:
    """Gives the cache the columns of `plan`, which are more."""
    return _pinned(carry._replace(cache=add_columns(carry.cache, plan.columns)), plan.model.compute.rules)


@partial(jax.jit, static_argnames=("plan",))
def empty_slots(fixed: Fixed, *, plan: Plan) -> Carry:
    """Slots of which none is taken."""
    model = plan.model
    zeros = jnp.zeros(plan.slots, jnp.int32)
    prompts = Prompts(jnp.zeros((plan.slots, plan.width), jnp.int32), *(zeros,) * 5)
    rows = new_rows(prompts, plan.width + plan.room, plan.beams)
    encoded = None
    if plan.source_width:
        shape = jax.ShapeDtypeStruct((plan.slots, plan.source_width), jnp.int32)
        shapes = jax.eval_shape(partial(_encode, model), fixed.params, shape, shape)
        encoded = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    cache = model.init_cache(plan.slots * plan.beams, plan.columns)
    return _pinned(Carry(rows, cache, encoded, jnp.int32(plan.width)), model.compute.rules)


def _write(rows: Rows, logits: jax.Array, fixed: Fixed, plan: Plan) -> tuple[Rows, jax.Array | None]:
    """Returns the rows with a token more, and of beams which of them goes on from which."""
    if rows.beams is None:
        return write_token(rows, logits, fixed.key, plan.settings, fixed.stops), None
    return extend_beams(rows, logits, fixed.key, plan.settings, fixed.stops)


def _encode(model: Model, params: Any, tokens: jax.Array, inside: jax.Array) -> Any:
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None] * inside
    return model.encode(params, tokens, inside, positions)


def _repeat_rows(cache: Any, of: jax.Array) -> Any:
    """A cache with its rows in another order, some several times."""

    def take(whole: Any) -> Any:
        if not isinstance(whole, KVCache):
            return whole[:, of]
        marks = (whole.segment_ids[of], whole.prefix[of])
        return KVCache(whole.keys[:, of], whole.values[:, of], *marks, whole.length)

    return jax.tree.map(take, cache, is_leaf=lambda leaf: isinstance(leaf, KVCache))


def _pinned(carry: Carry, rules: Rules) -> Carry:
    """The same with its rows split over the mesh, whatever made it, so that nothing is compiled twice."""
    if rules.mesh is None:
        return carry

    def rows_first(x: jax.Array) -> jax.Array:
        return constrain(x, ("batch", *(None,) * (x.ndim - 1)), rules)

    def of_encoder(x: jax.Array) -> jax.Array:
        if x.ndim != 5:
            return rows_first(x)
        return constrain(x, ("batch", None, "act_heads", "kv_length", None), rules)

    def of_cache(x: Any) -> Any:
        if not isinstance(x, KVCache):
            return constrain(x, (None, "batch", *(None,) * (x.ndim - 2)), rules)
        keys, values = (constrain(y, (None, "batch", "kv_heads", None, None), rules) for y in (x.keys, x.values))
        return KVCache(keys, values, rows_first(x.segment_ids), rows_first(x.prefix), constrain(x.length, (), rules))

    cache = jax.tree.map(of_cache, carry.cache, is_leaf=lambda leaf: isinstance(leaf, KVCache))
    rows, encoded = jax.tree.map(rows_first, carry.rows), jax.tree.map(of_encoder, carry.encoded)
    return Carry(rows, cache, encoded, constrain(carry.column, (), rules))
