"""What the pretraining tasks share: their interface, the layout of a row, and the scores of predicted tokens."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jaxlm.data.corpus.corpus import Corpus
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.objectives import Batch, Loss
from jaxlm.objectives.cross_entropy import LossTerms
from jaxlm.objectives.language_model import language_model_loss, measure_language_model
from jaxlm.section import Section
from jaxlm.tokenizer.tokenizer import Tokenizer

METRICS = ("loss", "perplexity", "bits_per_byte", "accuracy")
"""Of predicted tokens; `bits_per_byte` only where every token of the text is predicted."""


class LanguageModelConfig(Section):
    """What the objectives of pretraining have in common."""

    text: str = "text"
    """Column of the documents, where they come as rows (jsonl, parquet, TFDS)."""
    z_loss: float = Field(default=0.0, ge=0)
    """Weight of the square of the log-partition function in the loss (Chowdhery et al., 2022); 1e-4 is usual."""


class SamplesConfig(Section):
    """Text that a generative model writes at each evaluation, for the log and the report."""

    prompts: tuple[str, ...] = ()
    """Beginnings to continue; absent: the first words of the first validation documents."""
    number: int = Field(default=2, ge=0)
    """Samples without prompts of their own; 0: none."""
    tokens: int = Field(default=64, gt=0)
    """Tokens written after each prompt, at most."""
    temperature: float = Field(default=0.8, ge=0)
    """Divides the logits; 0: always the likeliest token."""
    top_k: int | None = Field(default=None, gt=0)
    """Draw from so many likeliest tokens only."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the likeliest tokens that hold so much of the probability."""


class PretrainingTask(ABC):
    """A pretraining objective: which stretches of text make a row, what the row asks, and how answers are scored."""

    config: Any
    """Its section of the config."""
    head: str
    """Head kind of the model."""
    wrap: Literal["documents", "none"]
    """Special tokens in the tokenised corpus: "documents" (around each) or "none" (the row adds its own)."""
    lookahead: int
    """Tokens that a segment carries beyond its inputs: 1 where the next token is predicted."""
    overhead: Any = 0
    """Columns that a segment takes up besides its tokens."""
    cost: Any = None
    """Columns of a segment by its tokens (`data.rows.Cost`), where that is not their number and `overhead`."""
    generative = False
    """Whether the model can write text."""
    num_outputs = 0
    primary_metric = "loss"

    @property
    def settings(self) -> dict[str, Any]:
        """What decides a row besides its text, for the loader's fingerprint."""
        return {}

    @property
    def model_overrides(self) -> dict[str, Any]:
        """Fields of the model's config that the task decides."""
        return {}

    @property
    def metric_names(self) -> tuple[str, ...]:
        return METRICS

    @abstractmethod
    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of one row; of no segments, padding of weight 0."""

    def loss(self, label_smoothing: float = 0.0, chunk: int | None = None) -> Loss:
        """The cross-entropy of what a row asks; `chunk` columns at a time."""
        return language_model_loss(terms=LossTerms(label_smoothing, self.config.z_loss), chunk=chunk)

    def measure(self, outputs: Any, batch: Batch, chunk: int | None = None) -> dict[str, Any]:
        """Sums over a batch, on the device."""
        return measure_language_model(outputs, batch, chunk=chunk)

    def metrics(self, sums: Mapping[str, float], corpora: Sequence[Corpus]) -> dict[str, float]:
        """Scores of a whole split from its sums."""
        return token_metrics(sums, corpora if "bits_per_byte" in self.metric_names else ())

    @abstractmethod
    def show(self, batch: Mapping[str, np.ndarray], tokenizer: Tokenizer) -> list[str]:
        """The first row of a batch, decoded: what the model will really see, and what it is asked."""

    def describe(self) -> dict[str, Any]:
        """What summary.json says of the task."""
        return {"problem": self.config.kind, "label_names": [], "task": {"kind": self.config.kind}}

    def hf_config(self) -> dict[str, Any]:
        """What an exported config.json says of the task."""
        return {}


def concat_segments(
    pieces: Sequence[np.ndarray], length: int, pad_id: int, prefix: str = ""
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Lays pieces of text side by side in a row.

    Args:
      pieces: int32 [n] each, together at most `length`.
      prefix: of the arrays' names ("decoder_").
    Returns:
      `tokens`, `segment_ids` (from 1; 0 is padding) and `positions` (from 0 in each piece), int32 [length]; and the
      column at which each piece begins.
    """
    total = sum(map(len, pieces))
    if total > length:
        raise ValueError(f"{total} tokens do not fit a row of {length}")
    tokens = np.full(length, pad_id, np.int32)
    segment_ids, positions = np.zeros(length, np.int32), np.zeros(length, np.int32)
    starts = np.zeros(len(pieces), np.int64)
    column = 0
    for number, piece in enumerate(pieces):
        starts[number] = column
        part = slice(column, column + len(piece))
        tokens[part], segment_ids[part], positions[part] = piece, number + 1, np.arange(len(piece))
        column += len(piece)
    return {f"{prefix}tokens": tokens, f"{prefix}segment_ids": segment_ids, f"{prefix}positions": positions}, starts


def next_token_row(segments: Sequence[Segment], length: int, pad_id: int) -> dict[str, np.ndarray]:
    """A row in which every token asks for the next: `concat_segments` of the inputs, `labels` and `weights`."""
    arrays, _ = concat_segments([segment.tokens[:-1] for segment in segments], length, pad_id)
    labels = np.zeros(length, np.int32)
    following = [segment.tokens[1:] for segment in segments]
    used = sum(map(len, following))
    if used:
        labels[:used] = np.concatenate(following)
    return arrays | {"labels": labels, "weights": (arrays["segment_ids"] > 0).astype(np.float32)}


def token_metrics(sums: Mapping[str, float], corpora: Sequence[Corpus] = ()) -> dict[str, float]:
    """Loss, perplexity and accuracy of the predicted tokens; with corpora, bits per byte.

    loss is in nats per predicted token, perplexity = exp(loss), and bits_per_byte = loss / ln 2 x tokens / bytes of the
    text, which does not depend on the tokenizer (Gao et al., 2020, "The Pile", section 3.1).
    """
    tokens = max(sums["tokens"], 1.0)
    loss = sums["nll"] / tokens
    scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / tokens}
    num_bytes = sum(corpus.num_bytes for corpus in corpora)
    if num_bytes:
        scores["bits_per_byte"] = loss / math.log(2) * sum(corpus.num_tokens for corpus in corpora) / num_bytes
    return scores


def show_segments(
    batch: Mapping[str, np.ndarray], tokenizer: Tokenizer, asked: Mapping[int, str], prefix: str = ""
) -> list[str]:
    """A line for each segment of the first row, and what is asked of it, by segment number."""
    lines = ["first row:"]
    tokens, segment_ids = batch[f"{prefix}tokens"][0], batch[f"{prefix}segment_ids"][0]
    for number in range(1, int(segment_ids.max(initial=0)) + 1):
        inside = segment_ids == number
        text = tokenizer.decode(tokens[inside], skip_special_tokens=False)
        lines.append(f"  {number:3d}  {int(inside.sum())} tokens: {text!r}")
        if number in asked:
            lines.append(f"       asked: {asked[number]}")
    return [*lines, f"       {int((segment_ids == 0).sum())} tokens of padding"]
