"""A new pretraining objective from outside the package: each token asks for the token before it, right to left.

python scripts/pretrain.py --plugin examples/new_objective.py --config my.yaml     # task: {kind: toy_reversed_lm}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from jaxlm.data.corpus.row_plan import Segment
from jaxlm.tasks import register
from jaxlm.tasks.language_model import NEXT_TOKEN_FIELDS, LanguageModel, LanguageModelConfig, next_token_row


class ToyReversedLMConfig(LanguageModelConfig):
    """Pretraining to predict each token from those after it."""

    kind: Literal["toy_reversed_lm"] = "toy_reversed_lm"
    """Maximum likelihood of the token before."""


@register
@dataclass(frozen=True, eq=False)
class ToyReversedLM(LanguageModel):
    config: ToyReversedLMConfig
    Config = ToyReversedLMConfig
    head = "causal_lm"
    wrap = "documents"
    lookahead = 1
    fields = NEXT_TOKEN_FIELDS

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        backwards = [replace(segment, tokens=segment.tokens[::-1]) for segment in segments]
        return next_token_row(backwards, self.length, self.pad_id)

    def show(self, batch):
        return [self.tokenizer.decode(batch["tokens"][0][::-1])]
