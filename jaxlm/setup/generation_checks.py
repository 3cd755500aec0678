"""Settings of generation checked against the model that writes, and against the prompts that it is given."""

from __future__ import annotations

from collections.abc import Mapping

from jaxlm.data.dataset import Dataset
from jaxlm.errors import UserError
from jaxlm.models import Model
from jaxlm.tasks.records import Generation

WRITERS = ("causal_lm", "seq2seq_lm")
"""Heads that write."""


def check_settings(model: Model, settings: Generation) -> None:
    """Checks that a model can write as the settings say.

    Raises:
      UserError: it cannot; names the setting, and what was expected.
    """
    if model.family.init_cache is None:
        raise UserError(f"model family {model.family.name!r} cannot generate text")
    if model.head not in WRITERS:
        raise UserError(f"a model with a {model.head} head cannot continue texts; expected one with a causal_lm head")
    if settings.prefix and "prefix" not in model.family.inputs:
        raise UserError(f"model family {model.family.name!r} reads from left to right alone; expected prefix=False")
    s, vocab_size = settings, model.config.vocab_size
    drawn = settings if settings.do_sample else Generation()  # nothing else reads the settings of sampling
    named = {"eos_token_id": s.eos_ids, "bad_words": tuple(i for word in s.bad_words for i in word)}
    named |= {
        f"forced_{name}_token_id": () if token is None else (token,)
        for name, token in (("bos", s.forced_bos_id), ("eos", s.forced_eos_id))
    }
    for name, ids in named.items():
        if outside := [i for i in ids if not 0 <= i < vocab_size]:
            raise UserError(f"generation.{name}: {outside[0]} is outside the model's vocabulary of {vocab_size}")
    for name, fits, wanted in (
        ("max_new_tokens", s.max_new_tokens is None or s.max_new_tokens >= 1, "at least 1"),
        ("max_length", s.max_new_tokens is not None or s.max_length is None or s.max_length >= 2, "at least 2"),
        ("min_new_tokens", s.min_new_tokens >= 0, "0 or more"),
        ("num_beams", s.num_beams >= 1, "at least 1"),
        ("num_return_sequences", s.num_return_sequences >= 1, "at least 1"),
        ("no_repeat_ngram_size", s.no_repeat_ngram_size >= 0, "0 or more"),
        ("repetition_penalty", s.repetition_penalty > 0, "more than 0"),
        ("temperature", drawn.temperature > 0, "more than 0 (do_sample=false always takes the likeliest token)"),
        ("top_k", drawn.top_k is None or drawn.top_k >= 0, "0 (all tokens) or more"),
        ("top_p", drawn.top_p is None or 0 < drawn.top_p <= 1, "more than 0 and at most 1"),
        ("min_p", drawn.min_p is None or 0 <= drawn.min_p <= 1, "from 0 to 1"),
        ("early_stopping", s.early_stopping in (True, False, "never"), "true, false or never"),
    ):
        if not fits:
            raise UserError(f"generation.{name}={getattr(s, name)}: expected {wanted}")
    if any(not word for word in s.bad_words):
        raise UserError("generation.bad_words: expected words of at least one token, found one of none")
    if s.num_return_sequences > 1 and s.num_beams == 1 and not s.do_sample:
        raise UserError(
            f"generation.num_return_sequences={s.num_return_sequences}: the likeliest tokens make one text; expected "
            "do_sample=true or num_beams of at least as many"
        )
    if s.num_beams > 1 and s.num_return_sequences > s.num_beams:
        raise UserError(
            f"generation.num_return_sequences={s.num_return_sequences}: expected at most num_beams={s.num_beams}"
        )
    if s.max_new_tokens is not None and s.min_new_tokens > s.max_new_tokens:
        raise UserError(
            f"generation.min_new_tokens={s.min_new_tokens}: expected at most max_new_tokens={s.max_new_tokens}"
        )


def check_generation(settings: Generation | None, model: Model, datasets: Mapping[str, Dataset]) -> None:
    """Checks before anything is trained what would stop the first evaluation.

    Args:
      settings: None: nothing is written.
    Raises:
      UserError: as `check_settings`; a row of validation or test whose prompt leaves no room for what is to be written.
    """
    if settings is None or model.family.init_cache is None:
        return
    check_settings(model, settings)
    most = model.config.max_positions
    for split in ("validation", "test"):
        examples = datasets[split].examples() if split in datasets else None
        if examples is None:
            continue
        for example in examples.examples:
            if example.prompt is None:
                continue
            where, length = examples.table.where(example.row), len(example.prompt)
            limit, _ = limits_of(settings, length, f"{where}: a prompt", most)
            if length + limit > most:
                raise UserError(
                    f"{where}: a prompt of {length} tokens; generation.max_new_tokens={limit} more do not fit the "
                    f"model's {most} positions: lower that, or data.max_length"
                )


def room_for_prompt(model: Model, settings: Generation) -> int:
    """Returns the most tokens of a prompt, below 1 if there is no room for any."""
    if settings.max_new_tokens is not None:
        return model.config.max_positions - settings.max_new_tokens
    return min(model.config.max_positions, settings.max_length or 0) - 1


def limits_of(settings: Generation, length: int, name: str, most: int) -> tuple[int, int]:
    """Returns the most tokens to write after a prompt, and the fewest.

    Args:
      length: of the prompt.
      name: of it, for errors.
      most: the model's positions, beyond which no `max_length` reaches.
    Raises:
      UserError: the prompt leaves no room for any.
    """
    limit = settings.max_new_tokens
    if limit is None:
        longest = min(settings.max_length or 0, most)
        limit = longest - length
        if limit < 1:
            raise UserError(
                f"{name} has {length} tokens: expected fewer than {longest}, by generation.max_length="
                f"{settings.max_length} and the model's {most} positions; generation.max_new_tokens counts new tokens "
                "alone"
            )
    return limit, max(settings.min_new_tokens, settings.min_length - length)
