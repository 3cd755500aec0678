"""Masked language modelling: restore the tokens that were masked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field as FieldInfo

from jaxlm.data.corpus.masking import apply_masks, sample_mask_positions
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.fields import Batch, Field
from jaxlm.tasks.language_model import (
    PREDICTED_TOKENS,
    LanguageModel,
    LanguageModelConfig,
    concat_segments,
    show_segments,
)
from jaxlm.tasks.records import Context, Metric, Sources
from jaxlm.tokenizer.vocabulary import MaskingVocabulary, masking_vocabulary


class MaskingConfig(LanguageModelConfig):
    """What the objectives over masked tokens have in common."""

    mask_rate: float = FieldInfo(default=0.15, gt=0, lt=1)
    """Share of the tokens that are to be predicted."""
    whole_word: bool = False
    """Mask all pieces of a word or none."""


class MaskedLMConfig(MaskingConfig):
    """Pretraining to restore masked tokens (BERT, RoBERTa, DistilBERT, ALBERT, DeBERTa, ModernBERT, MPNet)."""

    kind: Literal["masked_lm"] = "masked_lm"
    """Maximum likelihood of the tokens that were masked."""
    mask_rate: float = FieldInfo(default=0.15, gt=0, lt=1)
    """Share of the tokens to predict: 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al., 2019)."""


@dataclass(frozen=True)
class MaskedRows:
    """Rows of whole pieces of text, special tokens around each, some of whose tokens are hidden.

    Attributes:
      length: T.
      before, after: special tokens around a piece.
      rate: share of a row's ordinary tokens that is asked for.
      masked, random: of those, the shares that become [MASK] and a random token; the rest stays.
    """

    length: int
    pad_id: int
    before: np.ndarray
    after: np.ndarray
    vocabulary: MaskingVocabulary
    rate: float
    whole_word: bool
    masked: float = 0.8
    random: float = 0.1

    @property
    def slots(self) -> int:
        """Most tokens that a row can ask for."""
        return max(1, round(self.rate * self.length))

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """tokens (hidden), original_tokens, segment_ids, positions int32 [T]; of the tokens asked for, slot_positions
        (columns) and labels int32 [S], weights float32 [S]."""
        pieces = [np.concatenate([self.before, segment.tokens, self.after]) for segment in segments]
        arrays, _ = concat_segments(pieces, self.length, self.pad_id)
        original = arrays["tokens"]
        inside = arrays["segment_ids"] > 0
        columns = np.zeros(0, np.int64)
        if inside.any():
            # Padding may be an ordinary token in a vocabulary without one for it.
            columns = sample_mask_positions(
                original[: inside.sum()], rng, self.vocabulary, rate=self.rate, whole_word=self.whole_word
            )
            arrays["tokens"] = apply_masks(
                original, columns, rng, self.vocabulary, masked=self.masked, random=self.random
            )
        asked = {
            "slot_positions": np.zeros(self.slots, np.int32),
            "labels": np.zeros(self.slots, np.int32),
            "weights": np.zeros(self.slots, np.float32),
        }
        for name, values in zip(asked, (columns, original[columns], 1.0), strict=True):
            asked[name][: len(columns)] = values
        return {**arrays, **asked, "original_tokens": original}


@dataclass(frozen=True, eq=False)
class MaskedTokens(LanguageModel):
    """An objective over rows some of whose tokens are masked; masks are drawn again for every row of every epoch."""

    config: MaskingConfig
    rows: MaskedRows

    wrap = "none"
    lookahead = 0
    masked: ClassVar[float] = 0.8
    random: ClassVar[float] = 0.1

    @classmethod
    def create(cls, config: MaskingConfig, context: Context, sources: Sources | None) -> MaskedTokens:
        """Raises:
        UserError: the tokenizer has no mask token.
        """
        before, after = context.tokenizer.special_token_affixes
        rows = MaskedRows(
            length=context.data.max_length,
            pad_id=context.tokenizer.pad_id or 0,
            before=before,
            after=after,
            vocabulary=masking_vocabulary(context.tokenizer, config.kind),
            rate=config.mask_rate,
            whole_word=config.whole_word,
            masked=cls.masked,
            random=cls.random,
        )
        return cls(config, context, rows)

    @property
    def fields(self) -> tuple[Field, ...]:
        return (Field("slot_positions", "position"), Field("labels", "slot"), Field("weights", "slot", np.float32))

    @property
    def overhead(self) -> int:
        return len(self.rows.before) + len(self.rows.after)

    @property
    def settings(self) -> dict[str, Any]:
        return {"task.mask_rate": self.config.mask_rate, "task.whole_word": self.config.whole_word}

    def show(self, batch: Batch) -> list[str]:
        real = batch["weights"][0] > 0
        columns, labels = batch["slot_positions"][0][real], batch["labels"][0][real]
        segments = batch["segment_ids"][0][columns]
        asked = {int(n): " ".join(self.tokenizer.tokens(labels[segments == n])) for n in np.unique(segments)}
        return show_segments(batch, self.tokenizer, asked)


@dataclass(frozen=True, eq=False)
class MaskedLM(MaskedTokens):
    """Maximum likelihood of masked tokens (Devlin et al., 2019)."""

    config: MaskedLMConfig

    Config = MaskedLMConfig
    head = "masked_lm"

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return PREDICTED_TOKENS

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `MaskedRows.row`, without the original tokens."""
        arrays = self.rows.row(segments, rng)
        del arrays["original_tokens"]
        return arrays
