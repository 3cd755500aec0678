"""Causal language modelling: predict each next token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxlm.config_tasks import CausalLMConfig
from jaxlm.data.corpus import Corpus
from jaxlm.data.rows import Segment
from jaxlm.data.tokenize import Tokenizer
from jaxlm.objectives import Batch, Loss
from jaxlm.objectives.cross_entropy import Terms
from jaxlm.objectives.language_model import language_model_loss, measure_language_model
from jaxlm.tasks.language_model import METRICS, next_tokens, show_segments, token_metrics


@dataclass(frozen=True)
class CausalLM:
    """Maximum likelihood of each token given those before it, over rows of `length` tokens."""

    config: CausalLMConfig
    length: int
    pad_id: int

    head = "causal_lm"
    wrap = "documents"
    overlap = 1
    overhead = 0
    cost = None
    generative = True

    @classmethod
    def from_tokenizer(cls, config: CausalLMConfig, tokenizer: Tokenizer, length: int) -> CausalLM:
        return cls(config, length, tokenizer.pad_id or 0)

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return METRICS

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens, segment_ids, positions, labels int32 [T]; weights float32 [T]."""
        del rng
        return next_tokens(segments, self.length, self.pad_id)

    def loss(self, label_smoothing: float = 0.0, chunk: int | None = None) -> Loss:
        return language_model_loss(terms=Terms(label_smoothing, self.config.z_loss), chunk=chunk)

    def measure(self, outputs: Any, batch: Batch, chunk: int | None = None) -> dict[str, Any]:
        return measure_language_model(outputs, batch, chunk=chunk)

    def metrics(self, sums: Mapping[str, float], corpora: Sequence[Corpus]) -> dict[str, float]:
        return token_metrics(sums, corpora)

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        return show_segments(batch, tokenizer, {})
