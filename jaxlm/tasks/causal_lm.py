"""Causal language modelling: predict each next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.config_tasks import CausalLMConfig
from jaxlm.data.rows import Segment
from jaxlm.data.tokenize import Tokenizer
from jaxlm.tasks.language_model import PretrainingTask, next_tokens, show_segments


@dataclass(frozen=True)
class CausalLM(PretrainingTask):
    """Maximum likelihood of each token given those before it, over rows of `length` tokens."""

    config: CausalLMConfig
    length: int
    pad_id: int

    head = "causal_lm"
    wrap = "documents"
    overlap = 1
    generative = True

    @classmethod
    def from_tokenizer(cls, config: CausalLMConfig, tokenizer: Tokenizer, length: int) -> CausalLM:
        return cls(config, length, tokenizer.pad_id or 0)

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens, segment_ids, positions, labels int32 [T]; weights float32 [T]."""
        del rng
        return next_tokens(segments, self.length, self.pad_id)

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        return show_segments(batch, tokenizer, {})
