"""The config section `generation`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from jaxlm.section import Section


class GenerationConfig(Section):
    """How a model writes, as in Transformers; an absent key is that of generation_config.json, else the default."""

    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most tokens that are written; default 64."""
    max_length: int | None = Field(default=None, ge=1)
    """Most tokens of prompt and text together, where `max_new_tokens` is not given."""
    min_new_tokens: int | None = Field(default=None, ge=0)
    """Fewest tokens that are written; default 0."""
    min_length: int | None = Field(default=None, ge=0)
    """Fewest tokens of prompt and text together; default 0."""
    do_sample: bool | None = None
    """Draw tokens instead of taking the likeliest; default false."""
    temperature: float | None = Field(default=None, gt=0)
    """Sampling: divides the scores; default 1."""
    top_k: int | None = Field(default=None, ge=0)
    """Sampling: draw from so many likeliest tokens only; 0: all; default 50."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Sampling: draw from the likeliest tokens that hold so much of the probability; default 1."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """Sampling: draw from tokens that are at least this fraction as likely as the likeliest; default: all."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """Sampling: seed of the draws; default: the run's `seed`."""
    num_beams: int | None = Field(default=None, ge=1)
    """Texts that beam search keeps side by side; default 1: no beam search."""
    num_return_sequences: int | None = Field(default=None, ge=1)
    """Texts for each prompt: the best of the beams, or as many samples; default 1."""
    length_penalty: float | None = None
    """Beam search: a text's score is divided by its length to this power; default 1."""
    early_stopping: bool | Literal["never"] | None = None
    """Beam search ends for a prompt: `false` (default), when a better text is unlikely; `true`, with `num_beams` texts;
    `never`, when no better text is possible."""
    no_repeat_ngram_size: int | None = Field(default=None, ge=0)
    """Sequences of so many tokens occur once; default 0: as often as they may."""
    repetition_penalty: float | None = Field(default=None, gt=0)
    """Scores of tokens that the text already has are divided by it; default 1."""
    bad_words: tuple[str, ...] | None = None
    """Texts that are not written, at the beginning of a word or inside it."""
    bad_words_ids: tuple[tuple[int, ...], ...] | None = None
    """Sequences of token ids that are not written."""
    stop_strings: tuple[str, ...] | None = None
    """A text ends with the first of these that it has."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Ids that end a text; default: the tokenizer's, and those that generation_config.json or config.json names."""
    forced_bos_token_id: int | None = Field(default=None, ge=0)
    """Id of the first token after the decoder's start, for instance mBART's language; default: none."""
    forced_eos_token_id: int | None = Field(default=None, ge=0)
    """Id of the last token where `max_new_tokens` are written; default: none."""

    @model_validator(mode="after")
    def _fits_together(self) -> GenerationConfig:
        if any(not text for text in (*(self.bad_words or ()), *(self.stop_strings or ()))):
            raise ValueError("bad_words and stop_strings: expected texts of at least one character")
        if any(not word for word in self.bad_words_ids or ()):
            raise ValueError("bad_words_ids: expected lists of at least one id")
        if self.max_new_tokens is not None and (self.min_new_tokens or 0) > self.max_new_tokens:
            raise ValueError(f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}")
        return self
