"""Settings of generation checked against the model that writes."""

from __future__ import annotations

from collections.abc import Sequence

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
        ("min_new_tokens", s.min_new_tokens >= 0, "0 or more"),
        ("num_beams", s.num_beams >= 1, "at least 1"),
        ("num_return_sequences", s.num_return_sequences >= 1, "at least 1"),
        ("no_repeat_ngram_size", s.no_repeat_ngram_size >= 0, "0 or more"),
        ("repetition_penalty", s.repetition_penalty > 0, "more than 0"),
        ("temperature", s.temperature > 0, "more than 0 (do_sample=false always takes the likeliest token)"),
        ("top_k", s.top_k is None or s.top_k >= 0, "0 (all tokens) or more"),
        ("top_p", s.top_p is None or 0 < s.top_p <= 1, "more than 0 and at most 1"),
        ("min_p", s.min_p is None or 0 <= s.min_p <= 1, "from 0 to 1"),
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


def room_for_prompt(model: Model, settings: Generation) -> int:
    """Returns the most tokens of a prompt, below 1 if there is no room for any."""
    if settings.max_new_tokens is not None:
        return model.config.max_positions - settings.max_new_tokens
    return min(model.config.max_positions, settings.max_length or 0) - 1


def limits_of(settings: Generation, prompt: Sequence[int], name: str) -> tuple[int, int]:
    """Returns the most tokens to write after a prompt, and the fewest.

    Raises:
      UserError: the prompt leaves no room for any.
    """
    limit = settings.max_new_tokens
    if limit is None:
        limit = (settings.max_length or 0) - len(prompt)
        if limit < 1:
            raise UserError(
                f"{name} has {len(prompt)} tokens: expected fewer than generation.max_length={settings.max_length}; "
                "generation.max_new_tokens counts new tokens alone"
            )
    return limit, max(settings.min_new_tokens, settings.min_length - len(prompt))
