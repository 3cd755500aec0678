"""Prefix language modelling: read a prefix in both directions, predict what follows token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jaxlm.data.corpus.row_plan import Segment
from jaxlm.fields import Batch, Field
from jaxlm.tasks.language_model import (
    NEXT_TOKEN_FIELDS,
    PREDICTED_TOKENS,
    TextWriter,
    WriterConfig,
    next_token_row,
    show_segments,
)
from jaxlm.tasks.records import Generation, Metric


class PrefixLMConfig(WriterConfig):
    """Pretraining to continue a prefix that is read in both directions (Raffel et al., 2020, section 3.2.1)."""

    kind: Literal["prefix_lm"] = "prefix_lm"
    """Maximum likelihood of the tokens behind a prefix of random length."""


@dataclass(frozen=True, eq=False)
class PrefixLM(TextWriter):
    """Maximum likelihood of the tokens behind a prefix of uniform length (Raffel et al., 2020, section 3.2.1)."""

    config: PrefixLMConfig

    Config = PrefixLMConfig

    @property
    def fields(self) -> tuple[Field, ...]:
        return (*NEXT_TOKEN_FIELDS, Field("prefix", "token"))

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return PREDICTED_TOKENS  # the prefix is not predicted, hence no bits per byte

    @property
    def generation(self) -> Generation:
        return super().generation._replace(prefix=True)

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens, segment_ids, positions, labels int32 [T], prefix int32 [T] (1 inside), weights float32 [T].

        Of a segment of n inputs the first p, 1 <= p <= n, are the prefix; the last of them predicts the first token
        behind it.
        """
        arrays = next_token_row(segments, self.length, self.pad_id)
        prefix = np.zeros(self.length, np.int32)
        column = 0
        for segment in segments:
            inputs = len(segment.tokens) - 1
            size = int(rng.integers(1, inputs + 1))
            prefix[column : column + size] = 1
            arrays["weights"][column : column + size - 1] = 0.0
            column += inputs
        return arrays | {"prefix": prefix}

    def show(self, batch: Batch) -> list[str]:
        asked = {}
        for number in range(1, int(batch["segment_ids"][0].max(initial=0)) + 1):
            inside = batch["segment_ids"][0] == number
            asked[number] = (
                f"what follows {self.tokenizer.decode(batch['tokens'][0][inside & (batch['prefix'][0] > 0)])!r}"
            )
        return show_segments(batch, self.tokenizer, asked)
