"""Masked language modelling: restore the tokens that were masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jaxlm.data.corpus.masking import apply_masks, sample_mask_positions
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.tasks.language_model import METRICS, LanguageModelConfig, PretrainingTask, concat_segments, show_segments
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.vocabulary import MaskingVocabulary, masking_vocabulary


class MaskedLMConfig(LanguageModelConfig):
    """Pretraining to restore masked tokens (BERT, RoBERTa, DistilBERT)."""

    kind: Literal["masked_lm"] = "masked_lm"
    """Maximum likelihood of the tokens that were masked."""
    mask_rate: float = Field(default=0.15, gt=0, lt=1)
    """Share of the tokens to predict: 80 % become [MASK], 10 % a random token, 10 % stay (Devlin et al., 2019)."""
    whole_word: bool = False
    """Mask all pieces of a word or none."""


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

    @classmethod
    def of(cls, tokenizer: Tokenizer, length: int, kind: str, **settings: Any) -> MaskedRows:
        before, after = tokenizer.special_token_affixes
        vocabulary = masking_vocabulary(tokenizer, kind)
        return cls(length, tokenizer.pad_id or 0, before, after, vocabulary, **settings)

    @property
    def overhead(self) -> int:
        return len(self.before) + len(self.after)

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

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        real = batch["weights"][0] > 0
        columns, labels = batch["slot_positions"][0][real], batch["labels"][0][real]
        segments = batch["segment_ids"][0][columns]
        asked = {int(n): " ".join(tokenizer.tokens(labels[segments == n])) for n in np.unique(segments)}
        return show_segments(batch, tokenizer, asked)


@dataclass(frozen=True)
class MaskedLM(PretrainingTask):
    """Maximum likelihood of masked tokens (Devlin et al., 2019); masks are drawn anew for every row of every epoch."""

    config: MaskedLMConfig
    rows: MaskedRows

    head = "masked_lm"
    wrap = "none"
    lookahead = 0

    @classmethod
    def from_tokenizer(cls, config: MaskedLMConfig, tokenizer: Tokenizer, length: int) -> MaskedLM:
        rows = MaskedRows.of(tokenizer, length, config.kind, rate=config.mask_rate, whole_word=config.whole_word)
        return cls(config, rows)

    @property
    def overhead(self) -> int:
        return self.rows.overhead

    @property
    def settings(self) -> dict[str, Any]:
        return {"task.mask_rate": self.config.mask_rate, "task.whole_word": self.config.whole_word}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(name for name in METRICS if name != "bits_per_byte")

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """As `MaskedRows.row`, without the original tokens."""
        arrays = self.rows.row(segments, rng)
        del arrays["original_tokens"]
        return arrays

    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        return self.rows.show(batch, tokenizer)
