"""Span corruption: restore the spans of a text that sentinels stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pydantic import Field as FieldInfo

from jaxlm.data.corpus.masking import corrupt_spans, corrupted_lengths
from jaxlm.data.corpus.row_plan import Cost, Segment
from jaxlm.data.examples.shapes import round_up
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.tasks.language_model import (
    PREDICTED_TOKENS,
    LanguageModel,
    LanguageModelConfig,
    concat_segments,
    show_segments,
)
from jaxlm.tasks.records import Context, Metric, Sources
from jaxlm.tokenizer.vocabulary import sentinels


class SpanCorruptionConfig(LanguageModelConfig):
    """Pretraining to restore spans that sentinels replace (T5; Raffel et al., 2020)."""

    kind: Literal["span_corruption"] = "span_corruption"
    """Maximum likelihood of the spans that were taken out."""
    noise_density: float = FieldInfo(default=0.15, gt=0, lt=1)
    """Share of the tokens that is taken out."""
    mean_span: float = FieldInfo(default=3.0, ge=1)
    """Mean length of a span in tokens."""


@dataclass(frozen=True, eq=False)
class SpanCorruption(LanguageModel):
    """T5's pretraining (Raffel et al., 2020): the encoder reads `length` columns, the decoder as many as one whole
    segment's target needs."""

    config: SpanCorruptionConfig
    eos_id: int
    sentinels: np.ndarray

    Config = SpanCorruptionConfig
    head = "seq2seq_lm"
    wrap = "none"
    lookahead = 0

    @classmethod
    def create(cls, config: SpanCorruptionConfig, context: Context, sources: Sources | None) -> SpanCorruption:
        """Raises:
        UserError: the tokenizer has no end-of-text token, or fewer sentinels than a row has spans.
        """
        tokenizer, length = context.tokenizer, context.data.max_length
        if tokenizer.eos_id is None:
            raise UserError("task.kind=span_corruption: the tokenizer has no eos token; expected one of T5's kind")
        task = cls(config, context, tokenizer.eos_id, sentinels(tokenizer))
        _, target = corrupted_lengths(task.longest, density=config.noise_density, mean_span=config.mean_span)
        noise = round(task.longest * config.noise_density)
        if target - noise - 1 > len(task.sentinels):
            raise UserError(
                f"data.max_length={length}: a row has up to {target - noise - 1} spans, the tokenizer "
                f"{len(task.sentinels)} sentinels; lower it, or raise task.mean_span"
            )
        return task

    @property
    def fields(self) -> tuple[Field, ...]:
        labels, weights = Field("labels", "token", stream="decoder_"), Field("weights", "token", np.float32)
        return labels, replace(weights, stream="decoder_")

    @cached_property
    def longest(self) -> int:
        """Most tokens of a segment whose corrupted form fits the encoder."""
        longest = self.length
        while self._lengths(longest + 1)[0] <= self.length:
            longest += 1
        while self._lengths(longest)[0] > self.length:
            longest -= 1
        return longest

    @cached_property
    def target_length(self) -> int:
        """Columns of the decoder."""
        return round_up(self._lengths(self.longest)[1], 8)

    @property
    def cost(self) -> Cost:
        """Encoder columns of a segment, or more where its target takes up a larger share of the decoder."""

        def columns(lengths: np.ndarray) -> np.ndarray:
            both = np.asarray([self._lengths(int(n)) for n in lengths], np.int64).reshape(-1, 2)
            return np.maximum(both[:, 0], -(-both[:, 1] * self.length // self.target_length))

        return columns

    @property
    def settings(self) -> dict[str, Any]:
        return {"task.noise_density": self.config.noise_density, "task.mean_span": self.config.mean_span}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return PREDICTED_TOKENS

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens, segment_ids, positions int32 [T]; decoder_tokens, decoder_segment_ids, decoder_positions and labels
        int32 [U], weights float32 [U]. The decoder reads the target moved one to the right, behind its start token."""
        pairs = [
            corrupt_spans(
                segment.tokens, rng,
                density=self.config.noise_density, mean_span=self.config.mean_span,
                sentinels=self.sentinels, eos_id=self.eos_id,
            )
            for segment in segments
        ]  # fmt: skip
        encoder, _ = concat_segments([inputs for inputs, _ in pairs], self.length, self.pad_id)
        first = self.context.decoder_start_id
        start = np.asarray([self.pad_id if first is None else first], np.int32)
        shifted = [np.concatenate([start, target[:-1]]) for _, target in pairs]
        decoder, _ = concat_segments(shifted, self.target_length, self.pad_id, "decoder_")
        labels = np.zeros(self.target_length, np.int32)
        used = sum(len(target) for _, target in pairs)
        if used:
            labels[:used] = np.concatenate([target for _, target in pairs])
        weights = (decoder["decoder_segment_ids"] > 0).astype(np.float32)
        return {**encoder, **decoder, "labels": labels, "weights": weights}

    def show(self, batch: Batch) -> list[str]:
        asked = {}
        for number in range(1, int(batch["segment_ids"][0].max(initial=0)) + 1):
            inside = batch["decoder_segment_ids"][0] == number
            asked[number] = repr(self.tokenizer.decode(batch["labels"][0][inside], skip_special_tokens=False))
        return show_segments(batch, self.tokenizer, asked)

    def _lengths(self, length: int) -> tuple[int, int]:
        if length == 0:
            return 0, 0
        return corrupted_lengths(length, density=self.config.noise_density, mean_span=self.config.mean_span)
