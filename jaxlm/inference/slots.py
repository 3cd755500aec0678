"""Texts written in slots: rows that end retire, and their slots are refilled from the queue."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import RunFailure
from jaxlm.inference.rows import NO_TOKEN, Prompts, Rows
from jaxlm.inference.slot_steps import Carry, Fixed, Plan, empty_slots, fill, run, shift, widen
from jaxlm.parallel.sharding import Rules
from jaxlm.tasks.records import Generation


class Request(NamedTuple):
    """One text to write."""

    number: int
    """What tells its random numbers from those of others."""
    prompt: Sequence[int]
    limit: int
    least: int
    source: Sequence[int] | None = None
    """What the encoder reads."""
    place: int = 0
    """Among the texts that are asked for."""


class Hypothesis(NamedTuple):
    """One text that was written."""

    tokens: list[int]
    """The new tokens alone, the one that ended the text included."""
    score: float | None = None
    """Of beam search: the sum of the log probabilities over length ** length_penalty."""


def write_all(fixed: Fixed, requests: Sequence[Request], plan: Plan) -> Iterator[tuple[Request, list[Hypothesis]]]:
    """Yields each request with its texts, best first, as they end."""
    pending = deque(requests)
    held: list[Request | None] = [None] * plan.slots
    carry = empty_slots(fixed, plan=plan)
    while pending or any(held):
        free = [slot for slot, request in enumerate(held) if request is None]
        while pending and len(free) >= (size := min(plan.group, len(pending))):
            chosen = [pending.popleft() for _ in range(size)]
            slots, free = free[:size], free[size:]
            carry = move_in(fixed, carry, chosen, slots, plan)
            for slot, request in zip(slots, chosen, strict=True):
                held[slot] = request
        enough = min(plan.group, len(pending)) if pending else plan.slots
        carry, rows = run(fixed, carry, np.int32(enough), np.int32(plan.columns), plan=plan)
        done = np.asarray(rows.done)
        if any(request is not None and done[slot] for slot, request in enumerate(held)):
            found = jax.device_get(rows)
            for slot, request in enumerate(held):
                if request is not None and done[slot]:
                    held[slot] = None
                    yield request, read_texts(found, slot, plan.settings)
        elif any(held):
            longest = longest_running(rows)
            if longest > plan.columns // 2 and plan.columns < plan.most_columns:
                plan = plan._replace(columns=plan.most_columns)
                carry = widen(carry, plan=plan)
            else:
                carry = shift(carry, np.int32(plan.columns - max(plan.width, longest)), plan=plan)


def move_in(fixed: Fixed, carry: Carry, requests: Sequence[Request], slots: Sequence[int], plan: Plan) -> Carry:
    """Reads prompts into slots; each has its first token then."""
    width = round_up(max(len(request.prompt) for request in requests))
    tokens = np.full((plan.group, width), plan.pad_id)
    columns = np.zeros((6, plan.group))
    columns[0] = plan.slots  # no slot: the row only fills the batch
    for row, (slot, request) in enumerate(zip(slots, requests, strict=True)):
        tokens[row, width - len(request.prompt) :] = request.prompt
        stop = 0 if fixed.stops is None else fixed.stops.after(request.prompt)
        columns[:, row] = slot, len(request.prompt), request.number, request.limit, request.least, stop
    source = None
    if plan.source_width:
        read, inside = np.full((plan.group, plan.source_width), plan.pad_id), np.zeros((plan.group, plan.source_width))
        for row, request in enumerate(requests):
            assert request.source is not None
            read[row, : len(request.source)], inside[row, : len(request.source)] = request.source, 1
        inside[len(requests) :, 0] = 1
        source = tuple(_place((read, inside), plan.model.compute.rules))
    slot, *prompts = _place((columns[0], tokens, *columns[1:]), plan.model.compute.rules)
    return fill(fixed, carry, Prompts(*prompts), slot, source, plan=plan)


def longest_running(rows: Rows) -> int:
    """Columns of the longest text that is still being written; those before them are free."""
    return int(np.where(rows.done, 0, np.asarray(rows.prompt) + np.asarray(rows.step) - 1).max())


def read_texts(rows: Rows, slot: int, settings: Generation) -> list[Hypothesis]:
    """Returns what a slot holds, as arrays of the host: the texts that are asked for, best first.

    Raises:
      RunFailure: the model's scores of a next token were no numbers.
    """
    start = int(rows.prompt[slot])
    beams = rows.beams
    if NO_TOKEN in rows.tokens[slot, 0] or beams is not None and np.isnan(beams.finished_scores[slot]).any():
        raise RunFailure(
            "the model's scores of the next token are not finite: its parameters have diverged or are damaged, or its "
            "numbers are too large for model.dtype"
        )
    if beams is None:
        return [Hypothesis(rows.tokens[slot, 0, start : start + int(rows.step[slot])].tolist())]
    return [
        Hypothesis(
            beams.tokens[slot, i, start : start + int(beams.lengths[slot, i])].tolist(),
            float(beams.finished_scores[slot, i]),
        )
        for i in range(settings.num_return_sequences)
    ]


def round_up(length: int) -> int:
    """To a multiple of 16, and from 128 on of an eighth to a quarter of the length: four shapes to each doubling.

    What a decoder begins with, one token or two, is left as it is.
    """
    if 0 < length <= 2:
        return length
    step = max(16, (1 << length.bit_length()) >> 3)
    return -(-length // step) * step


def _place(arrays: Sequence[np.ndarray], rules: Rules) -> list[jax.Array]:
    """int32 arrays whose rows are split over the mesh."""
    arrays = [np.asarray(x, np.int32) for x in arrays]
    if rules.mesh is None:
        return [jnp.asarray(x) for x in arrays]
    shardings = [rules.sharding(("batch", "length")[: x.ndim], x.shape) for x in arrays]
    return [
        jax.make_array_from_callback(x.shape, sharding, lambda index, x=x: x[index])
        for x, sharding in zip(arrays, shardings, strict=True)
    ]
