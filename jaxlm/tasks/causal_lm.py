"""Causal language modelling: predict each next token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.corpus.dataset import CorpusDataset, CorpusSources
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.data.dataset import Dataset
from jaxlm.fields import Batch, Field
from jaxlm.tasks.language_model import NEXT_TOKEN_FIELDS, TextWriter, WriterConfig, next_token_row, show_segments

log = logging.getLogger("jaxlm")


class CausalLMConfig(WriterConfig):
    """Pretraining to predict each next token (GPT-2, Llama, LSTM, GRU)."""

    kind: Literal["causal_lm"] = "causal_lm"
    """Maximum likelihood of the next token."""


@dataclass(frozen=True, eq=False)
class CausalLM(TextWriter):
    """Maximum likelihood of each token given those before it, over rows of `length` tokens."""

    config: CausalLMConfig

    Config = CausalLMConfig

    def datasets(self, sources: CorpusSources) -> dict[str, Dataset]:
        made = super().datasets(sources)
        for split in ("validation", "test"):
            dataset = made.get(split)
            if isinstance(dataset, CorpusDataset) and (left_out := dataset.unpredicted(self.tokenizer)).bytes:
                log.info(
                    "data.%s: bits_per_byte leaves out %s of %s bytes, of the %s tokens that nothing stands before",
                    split, f"{left_out.bytes:,}", f"{dataset.describe()['bytes']:,}", f"{left_out.tokens:,}",
                )  # fmt: skip
        return made

    @property
    def fields(self) -> tuple[Field, ...]:
        return NEXT_TOKEN_FIELDS

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens, segment_ids, positions, labels int32 [T]; weights float32 [T]."""
        del rng
        return next_token_row(segments, self.length, self.pad_id)

    def show(self, batch: Batch) -> list[str]:
        return show_segments(batch, self.tokenizer, {})
