"""What the objectives over tokens share: rows, losses, scores, and the writing of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from pydantic import Field as FieldInfo

from jaxlm.data.corpus.dataset import CorpusDataset
from jaxlm.data.corpus.row_plan import Segment
from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.texts import TextCells
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Field
from jaxlm.objectives.cross_entropy import LossTerms
from jaxlm.objectives.language_model import language_model_loss, measure_language_model
from jaxlm.section import Section
from jaxlm.tasks.base import CorpusTask
from jaxlm.tasks.records import Answer, Context, Generation, Metric, Outputs, Sources, TaskConfig
from jaxlm.tokenizer.tokenizer import Tokenizer

PREDICTED_TOKENS = (Metric("loss", False), Metric("perplexity", False), Metric("accuracy"))
"""Scores of predicted tokens."""
TOKEN_METRICS = (*PREDICTED_TOKENS, Metric("bits_per_byte", False))
"""Where every token of the text is predicted."""
NEW_TOKENS = 64
"""Most tokens that are written after a prompt unless told otherwise."""
NEXT_TOKEN_FIELDS = (Field("labels", "token"), Field("weights", "token", np.float32))
"""Of `next_token_row`."""


class LanguageModelConfig(TaskConfig):
    """What the objectives of pretraining have in common."""

    text: str = "text"
    """Column of the documents, where they come as rows (jsonl, parquet, TFDS)."""
    z_loss: float = FieldInfo(default=0.0, ge=0)
    """Weight of the square of the log-partition function in the loss (Chowdhery et al., 2022); 1e-4 is usual."""


class SamplesConfig(Section):
    """Text that a model writes at each evaluation, as the section `generation` says, for the log and the report."""

    prompts: tuple[str, ...] = ()
    """Beginnings to continue; absent: the first words of the first validation documents."""
    number: int = FieldInfo(default=2, ge=0)
    """Samples without prompts of their own; 0: none."""


class WriterConfig(LanguageModelConfig):
    """What the objectives of models that write text have in common."""

    samples: SamplesConfig = SamplesConfig()
    """What is written at each evaluation."""


@dataclass(frozen=True, eq=False)
class LanguageModel(CorpusTask):
    """What the objectives over tokens share: the cross-entropy of a row's `labels`, and the scores of predicted tokens.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
    """

    config: LanguageModelConfig
    context: Context

    @classmethod
    def create(cls, config: Any, context: Context, sources: Sources | None) -> LanguageModel:
        return cls(config, context)

    @property
    def tokenizer(self) -> Tokenizer:
        return self.context.tokenizer

    @property
    def length(self) -> int:
        """T, columns of a row."""
        return self.context.data.max_length

    @property
    def pad_id(self) -> int:
        return self.tokenizer.pad_id or 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return TOKEN_METRICS

    @property
    def terms(self) -> LossTerms:
        """What is added to the cross-entropy."""
        return LossTerms(self.context.label_smoothing, self.config.z_loss)

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return language_model_loss(terms=self.terms, chunk=self.context.logits_chunk)(outputs, batch)

    def measure(self, outputs: Any, batch: Mapping[str, jax.Array]) -> Outputs:
        return Outputs(measure_language_model(outputs, batch, chunk=self.context.logits_chunk))

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        named = {metric.name for metric in self.metrics}
        if "bits_per_byte" not in named or not isinstance(dataset, CorpusDataset):
            return token_metrics(sums)
        count = dataset.unpredicted(self.tokenizer)
        whole = dataset.describe()
        # All of it, but for rows of training, of which every epoch passes some tokens over.
        share = sums["tokens"] / max(whole["tokens"] - count.tokens, 1)
        return token_metrics(sums, share * (whole["bytes"] - count.bytes))


@dataclass(frozen=True, eq=False)
class TextWriter(LanguageModel):
    """A language model that writes: its samples during training, and the continuation of each row that it is given."""

    config: WriterConfig

    head = "causal_lm"
    wrap = "documents"
    lookahead = 1
    predicts = True

    @property
    def generation(self) -> Generation:
        return self.context.generation.limited(NEW_TOKENS)

    @classmethod
    def text_columns(cls, config: WriterConfig) -> tuple[str, ...]:
        return (config.text,)

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        """Prompts to continue.

        Raises:
          UserError: a row without the prompt column, or with one that holds no text.
        """
        column = self.config.text
        table.require(column, key="task.text")
        cells = TextCells(table, (column,), allow_empty=True)
        bad = BadRows(table, self.context.data, labelled=labelled, key=key)
        examples = []
        for i in range(len(table.rows)):
            try:
                prompt = np.asarray(self.tokenizer.encode_prompt(cells.read(i)[0]), np.int32)
                if not prompt.size:
                    raise UserError(f"{table.where(i)}: {column} is empty; expected the beginning of a text")
                examples.append(Example({"tokens": prompt}, i, prompt=prompt))
            except UserError as error:
                bad.add(i, error)
        return Examples(table, examples, [None] * len(table.rows), {"skipped": len(bad.errors)}, bad.errors)

    def decode(self, example: Example, outputs: Mapping[str, Any]) -> list[dict[str, Any]]:
        assert example.prompt is not None
        prompt, several = example.prompt.tolist(), outputs.get("hypotheses", ((outputs["generated"].tolist(), None),))
        return [{"text": self.tokenizer.continuation(prompt, ids), "score": score} for ids, score in several]

    def prediction(self, row: Mapping[str, Any], kept: list[dict[str, Any]]) -> dict[str, Any]:
        """{"text": what the model writes after the prompt}; of several texts also `n_best`, a list of {"text",
        "score"}, best first; samples have no score."""
        return {"text": kept[0]["text"], **({"n_best": kept} if len(kept) > 1 else {})}


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


def token_metrics(sums: Mapping[str, float], num_bytes: float = 0.0) -> dict[str, float]:
    """Loss, perplexity and accuracy of the predicted tokens, and bits per byte of the text that they make up.

    loss is in nats per predicted token, perplexity = exp(loss), and bits_per_byte = summed loss / ln 2 / bytes, which
    does not depend on the tokenizer (Gao et al., 2020, "The Pile", section 3.1).

    Args:
      sums: `nll`, `tokens`, `correct`.
      num_bytes: UTF-8 bytes of the text that was predicted; 0: no bits per byte.
    """
    tokens = max(sums["tokens"], 1.0)
    loss = sums["nll"] / tokens
    scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / tokens}
    if num_bytes > 0:
        scores["bits_per_byte"] = sums["nll"] / math.log(2) / num_bytes
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
