"""Replaced-token detection: a small generator fills masked tokens in, the model tells which tokens are not original."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from pydantic import Field as FieldInfo

from jaxlm.data.corpus.row_plan import Segment
from jaxlm.data.dataset import Dataset
from jaxlm.fields import Field
from jaxlm.objectives.language_model import measure_replaced_tokens, replaced_tokens_loss
from jaxlm.tasks.language_model import token_metrics
from jaxlm.tasks.masked_lm import MaskedTokens, MaskingConfig
from jaxlm.tasks.records import Answer, Metric, Outputs


class ReplacedTokensConfig(MaskingConfig):
    """Pretraining to tell which tokens a small generator replaced (ELECTRA; Clark et al., 2020)."""

    kind: Literal["replaced_tokens"] = "replaced_tokens"
    """Replaced-token detection, together with the generator's masked language modelling."""
    mask_rate: float = FieldInfo(default=0.15, gt=0, lt=1)
    """Share of the tokens that the generator is asked for."""
    generator_size: float = FieldInfo(default=0.25, gt=0, le=1)
    """Width of the generator's layers as a share of the discriminator's."""
    discriminator_weight: float = FieldInfo(default=50.0, gt=0)
    """Weight of the discriminator's loss beside the generator's."""


@dataclass(frozen=True, eq=False)
class ReplacedTokens(MaskedTokens):
    """ELECTRA's pretraining (Clark et al., 2020): of the tokens asked for, 85 % are masked and 15 % stay."""

    config: ReplacedTokensConfig

    Config = ReplacedTokensConfig
    head = "replaced_tokens"
    masked = 0.85
    random = 0.0

    @property
    def fields(self) -> tuple[Field, ...]:
        return (*super().fields, Field("original_tokens", "token"))

    @classmethod
    def model_overrides(cls, config: ReplacedTokensConfig) -> dict[str, Any]:
        return {"generator_size": config.generator_size}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return (
            Metric("loss", False),
            Metric("generator_loss", False),
            Metric("generator_accuracy"),
            Metric("discriminator_loss", False),
            Metric("replaced_accuracy"),
            Metric("replaced_precision"),
            Metric("replaced_recall"),
        )

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `MaskedRows.row`."""
        return self.rows.row(segments, rng)

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        loss = replaced_tokens_loss(
            discriminator_weight=self.config.discriminator_weight,
            mask_rate=self.config.mask_rate,
            terms=self.terms,
            chunk=self.context.logits_chunk,
        )
        return loss(outputs, batch)

    def measure(self, outputs: Any, batch: Mapping[str, jax.Array]) -> Outputs:
        return Outputs(measure_replaced_tokens(outputs, batch, chunk=self.context.logits_chunk))

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
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
