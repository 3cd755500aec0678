"""Causal language modelling: predict each next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.corpus.row_plan import Segment
from jaxlm.tasks.language_model import (
    LanguageModelConfig,
    PretrainingTask,
    SamplesConfig,
    next_token_row,
    show_segments,
)
from jaxlm.tokenizer.tokenizer import Tokenizer


class CausalLMConfig(LanguageModelConfig):
    """Pretraining to predict each next token (GPT-2, Llama, LSTM, GRU)."""

    kind: Literal["causal_lm"] = "causal_lm"
    """Maximum likelihood of the next token."""
    samples: SamplesConfig = SamplesConfig()
    """What is written at each evaluation."""


@dataclass(frozen=True)
class CausalLM(PretrainingTask):
    """Maximum likelihood of each token given those before it, over rows of `length` tokens."""

    config: CausalLMConfig
    length: int
    pad_id: int

    head = "causal_lm"
    wrap = "documents"
    lookahead = 1
    generative = True

    @classmethod
    def from_tokenizer(cls, config: CausalLMConfig, tokenizer: Tokenizer, length: int) -> CausalLM:
        return cls(config, length, tokenizer.pad_id or 0)

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens, segment_ids, positions, labels int32 [T]; weights float32 [T]."""
        del rng
        return next_token_row(segments, self.length, self.pad_id)

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        return show_segments(batch, tokenizer, {})
