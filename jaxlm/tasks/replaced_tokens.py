"""Replaced-token detection: a small generator fills masked tokens in, the model tells which tokens are not original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jaxlm.data.corpus.corpus import Corpus
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.objectives import Batch, Loss
from jaxlm.objectives.cross_entropy import LossTerms
from jaxlm.objectives.language_model import measure_replaced_tokens, replaced_tokens_loss
from jaxlm.tasks.language_model import LanguageModelConfig, PretrainingTask, token_metrics
from jaxlm.tasks.masked_lm import MaskedRows
from jaxlm.tokenizer.tokenizer import Tokenizer


class ReplacedTokensConfig(LanguageModelConfig):
    """Pretraining to tell which tokens a small generator replaced (ELECTRA; Clark et al., 2020)."""

    kind: Literal["replaced_tokens"] = "replaced_tokens"
    """Replaced-token detection, together with the generator's masked language modelling."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens that the generator is asked for."""
    whole_word: bool = False
    """Mask all pieces of a word or none."""
    generator_size: float = Field(default=0.25, gt=0, le=1)
    """Width of the generator's layers as a share of the discriminator's."""
    discriminator_weight: float = Field(default=50.0, gt=0)
    """Weight of the discriminator's loss beside the generator's."""


@dataclass(frozen=True)
class ReplacedTokens(PretrainingTask):
    """ELECTRA's pretraining (Clark et al., 2020): of the tokens asked for, 85 % are masked and 15 % stay."""

    config: ReplacedTokensConfig
    rows: MaskedRows

    head = "replaced_tokens"
    wrap = "none"
    lookahead = 0

    @classmethod
    def from_tokenizer(cls, config: ReplacedTokensConfig, tokenizer: Tokenizer, length: int) -> ReplacedTokens:
        rows = MaskedRows.of(
            tokenizer, length, config.kind,
            rate=config.mask_rate, whole_word=config.whole_word, masked=0.85, random=0.0,
        )  # fmt: skip
        return cls(config, rows)

    @property
    def overhead(self) -> int:
        return self.rows.overhead

    @property
    def settings(self) -> dict[str, Any]:
        return {"task.mask_rate": self.config.mask_rate, "task.whole_word": self.config.whole_word}

    @property
    def model_overrides(self) -> dict[str, Any]:
        return {"generator_size": self.config.generator_size}

    @property
    def metric_names(self) -> tuple[str, ...]:
        found = tuple(f"replaced_{name}" for name in ("accuracy", "precision", "recall"))
        return ("loss", "generator_loss", "generator_accuracy", "discriminator_loss", *found)

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `MaskedRows.row`."""
        return self.rows.row(segments, rng)

    def loss(self, label_smoothing: float = 0.0, chunk: int | None = None) -> Loss:
        return replaced_tokens_loss(
            discriminator_weight=self.config.discriminator_weight,
            mask_rate=self.config.mask_rate,
            terms=LossTerms(label_smoothing, self.config.z_loss),
            chunk=chunk,
        )

    def measure(self, outputs: Any, batch: Batch, chunk: int | None = None) -> dict[str, Any]:
        return measure_replaced_tokens(outputs, batch, chunk=chunk)

    def metrics(self, sums: Mapping[str, float], corpora: Sequence[Corpus]) -> dict[str, float]:
        generator = token_metrics(sums)
        real = max(sums["real"], 1.0)
        discriminator = sums["discriminator_nll"] / real
        return {
            "loss": generator["loss"] + self.config.discriminator_weight * discriminator,
            "generator_loss": generator["loss"],
            "generator_accuracy": generator["accuracy"],
            "discriminator_loss": discriminator,
            "replaced_accuracy": sums["discriminator_correct"] / real,
            "replaced_precision": sums["hits"] / max(sums["found"], 1.0),
            "replaced_recall": sums["hits"] / max(sums["replaced"], 1.0),
        }

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        return self.rows.show(batch, tokenizer)
