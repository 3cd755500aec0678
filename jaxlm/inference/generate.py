"""Text written token by token: prompts in, continuations out, by any model that has a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.errors import UserError
from jaxlm.inference.slot_steps import Fixed, Plan, empty_slots, run
from jaxlm.inference.slots import Hypothesis, Request, move_in, read_texts, round_up, write_all
from jaxlm.inference.stops import stop_table
from jaxlm.models import Model
from jaxlm.setup.generation_checks import check_settings, limits_of
from jaxlm.tasks.records import Generation

SLOTS = 32
"""Most texts that are written side by side; of beam search, so many rows for each four beams."""


def generate(
    model: Model,
    params: Any,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    *,
    encoder_inputs: Sequence[Sequence[int]] | None = None,
    pad_id: int = 0,
    numbers: Sequence[int] | None = None,
) -> list[list[Hypothesis]]:
    """Continues each prompt as Transformers' `generate` would continue it alone.

    What a prompt is continued with depends on its number and the seed, not on the other prompts. Prompts of similar
    length are written together; lengths and numbers of rows are rounded up, so that few shapes are compiled.

    Args:
      settings: lengths, beams, sampling, the ids that end a text (none: each continuation is as long as it may be).
      encoder_inputs: what the encoder reads, for each prompt; of an encoder-decoder alone.
      pad_id: any id of the vocabulary; never returned.
      numbers: of the prompts, from 0; absent: 0, 1, 2, ...
    Returns:
      For each prompt `num_return_sequences` texts, best first.
    Raises:
      UserError: the model cannot generate, an empty prompt, or one too long for the model, or settings out of range.
    """
    check_settings(model, settings)
    numbers = range(len(prompts)) if numbers is None else numbers
    requests = _requests(model, prompts, settings, encoder_inputs, numbers)
    copies = _copies(settings)
    # Only the order matters: of texts that are drawn several times, the first one first.
    found: dict[int, list[Hypothesis]] = {}
    for chosen in _runs(requests, _slots(model, settings)):
        plan = _plan(model, settings, chosen, _room(requests), pad_id)
        for request, texts in write_all(_fixed(params, model, settings), chosen, plan):
            found[request.place] = texts
    return [[text for copy in range(copies) for text in found[i * copies + copy]] for i in range(len(prompts))]


def stream(
    model: Model,
    params: Any,
    prompt: Sequence[int],
    settings: Generation,
    *,
    encoder_input: Sequence[int] | None = None,
    pad_id: int = 0,
    number: int = 0,
) -> Iterator[list[int]]:
    """Yields the new tokens of one prompt as they are written; of beam search, once, the best text.

    Args and errors are those of `generate`; `number` is that of the prompt.
    """
    check_settings(model, settings)
    alone = settings._replace(num_return_sequences=1)
    inputs = None if encoder_input is None else [encoder_input]
    requests = _requests(model, [prompt], alone, inputs, [number])
    plan = _plan(model, alone, requests, _room(requests), pad_id)
    fixed = _fixed(params, model, alone)
    carry = move_in(fixed, empty_slots(fixed, plan=plan), requests, [0], plan)
    given, done = 0, False
    steps = np.int32(0)  # the first call only reads what `move_in` wrote
    while not done:
        carry, rows = run(fixed, carry, np.int32(plan.slots), steps, plan=plan)
        done, steps = bool(np.asarray(rows.done)[0]), np.int32(1 if plan.beams == 1 else plan.room)
        if done or plan.beams == 1:
            new = read_texts(jax.device_get(rows), 0, plan.settings)[0].tokens
            yield new[given:]
            given = len(new)


def _requests(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Generation,
    encoder_inputs: Sequence[Sequence[int]] | None,
    numbers: Sequence[int],
) -> list[Request]:
    """A request for each text that is written by itself: with samples, several to a prompt."""
    if (encoder_inputs is not None) != model.family.is_encoder_decoder:
        raise ValueError("expected encoder_inputs for an encoder-decoder, and for no other model")
    sources = [None] * len(prompts) if encoder_inputs is None else encoder_inputs
    copies, most = _copies(settings), model.config.max_positions
    requests = []
    for place, (number, prompt, source) in enumerate(zip(numbers, prompts, sources, strict=True)):
        _check_ids(prompt, f"prompt {place}", model)
        if source is not None:
            _check_ids(source, f"input {place}", model)
        limit, least = limits_of(settings, len(prompt), f"prompt {place}", most)
        if len(prompt) + limit > most:
            raise UserError(
                f"prompt {place} has {len(prompt)} tokens: with generation.max_new_tokens={limit} more it does not "
                f"fit the model's {most} positions"
            )
        requests.extend(
            Request(number * copies + copy, prompt, limit, least, source, place * copies + copy)
            for copy in range(copies)
        )
    return requests


def _check_ids(ids: Sequence[int], what: str, model: Model) -> None:
    vocab_size = model.config.vocab_size
    if not len(ids):
        raise UserError(f"{what} is empty; expected at least one token, such as the tokenizer's first")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise UserError(f"{what} has a token outside the model's vocabulary of {vocab_size}")


def _copies(settings: Generation) -> int:
    """Texts of a prompt that are written by themselves; beams bring several at once."""
    return 1 if settings.num_beams > 1 else settings.num_return_sequences


def _room(requests: Sequence[Request]) -> int:
    return max((round_up(max(request.limit, 16)) for request in requests), default=16)


def _slots(model: Model, settings: Generation) -> int:
    slots = SLOTS if settings.num_beams == 1 else max(1, 4 * SLOTS // settings.num_beams // 2)
    return _whole(slots, model)


def _whole(rows: int, model: Model) -> int:
    """Rounded up, so that every device has as many."""
    shards = model.compute.rules.num_batch_shards
    return -(-rows // shards) * shards


def _runs(requests: Sequence[Request], slots: int) -> list[list[Request]]:
    """Requests of about one length, the longest first; of few, also shorter ones."""

    def widths(request: Request) -> tuple[int, int]:
        return round_up(len(request.source or ())), round_up(len(request.prompt))

    def lengths(request: Request) -> tuple[int, int]:
        return len(request.source or ()), len(request.prompt)

    runs: list[list[Request]] = []
    for request in sorted(requests, key=lengths, reverse=True):
        if runs and (len(runs[-1]) < slots or widths(runs[-1][0]) == widths(request)):
            runs[-1].append(request)
        else:
            runs.append([request])
    return runs


def _plan(model: Model, settings: Generation, requests: Sequence[Request], room: int, pad_id: int) -> Plan:
    most = _slots(model, settings)
    slots = min(most, _whole(1 << (len(requests) - 1).bit_length(), model))
    refills = len(requests) > slots
    width = max(round_up(len(request.prompt)) for request in requests)
    columns = width + room + (round_up(max(room // 2, 16)) if refills else 0)
    sources = [len(request.source) for request in requests if request.source is not None]
    return Plan(
        model,
        settings._replace(
            max_new_tokens=0, max_length=None, min_new_tokens=0, min_length=0, seed=0, stop=(), tokenizer=None
        ),
        slots=slots,
        group=_whole(max(1, slots // 4), model) if refills else slots,
        width=width,
        room=room,
        columns=_first_columns(width, room, columns) if refills else columns,
        most_columns=columns,
        source_width=round_up(max(sources)) if sources else 0,
        pad_id=pad_id,
    )


def _first_columns(width: int, room: int, most: int) -> int:
    """Columns that a cache begins with: most texts end long before their limit, and each token reads every column."""
    few = width + max(32, round_up(room // 4))
    return few if 3 * few <= 2 * most else most


def _fixed(params: Any, model: Model, settings: Generation) -> Fixed:
    stops = None
    if settings.stop:
        assert settings.tokenizer is not None
        stops = stop_table(settings.tokenizer, settings.stop, model.config.vocab_size)
    return Fixed(params, jax.random.key(settings.seed), stops)
