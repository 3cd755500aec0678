"""Text to text: a text is read and another written, by an encoder and a decoder or by a decoder alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import jax
import numpy as np

from jaxlm.data.augmentation.copies import edit_texts
from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.config import DataConfig
from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.fields import Batch, Field
from jaxlm.metrics.squad import score_v1
from jaxlm.objectives.cross_entropy import LossTerms
from jaxlm.objectives.language_model import language_model_loss, measure_language_model
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.language_model import token_metrics
from jaxlm.tasks.records import Answer, Context, Generation, Metric, Outputs, TaskConfig
from jaxlm.tasks.text_cells import read_text
from jaxlm.tasks.text_config import WritingConfig
from jaxlm.tasks.text_layout import TextLayout, make_layout
from jaxlm.tasks.text_report import WrittenText, text_sections
from jaxlm.tasks.text_rows import TextRows
from jaxlm.tokenizer.tokenizer import Tokenizer


class TextToTextConfig(WritingConfig):
    """Fine-tuning to answer a text by a text: classification and question answering as text, and whatever else."""

    kind: Literal["text_to_text"] = "text_to_text"
    """What is learned: to write the target of each source."""


class Written(NamedTuple):
    """What is kept of a row: the text that was written, and of several all of them, best first, with their scores, None
    where texts were drawn."""

    text: str
    others: tuple[tuple[str, float | None], ...] = ()


_Made = TypeVar("_Made", bound="TextToText")


@dataclass(frozen=True, eq=False)
class TextToText(RowTask):
    """Maximum likelihood of targets, token by token; texts are written to be scored.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
      layout: what stands around texts.
    """

    config: WritingConfig
    context: Context
    layout: TextLayout

    Config: ClassVar[type[TaskConfig]] = TextToTextConfig
    head = "seq2seq_lm"
    unused_data_keys = ("concat_documents", "corpus", "long_text", "stride", "sampling")
    scored: ClassVar[tuple[Metric, ...]] = (Metric("exact_match"), Metric("f1"))
    """Scores of what is written, the first of which chooses the best checkpoint."""

    @classmethod
    def head_of(cls, heads: Collection[str]) -> str:
        return "seq2seq_lm" if "seq2seq_lm" in heads else "causal_lm"

    @classmethod
    def text_columns(cls, config: WritingConfig) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*config.columns, config.target)))

    @classmethod
    def added_texts(cls, config: WritingConfig) -> tuple[str, ...]:
        return config.literals

    @classmethod
    def edit_row(cls, config: WritingConfig, row: dict[str, Any], editor: Editor) -> dict[str, Any] | None:
        return edit_texts(row, config.columns, editor)

    @classmethod
    def input_columns(cls, config: WritingConfig, columns: Sequence[str]) -> tuple[str, ...]:
        return config.columns

    @classmethod
    def label_columns(cls, config: WritingConfig) -> tuple[str, ...]:
        return (config.target,)

    @classmethod
    def create(cls: type[_Made], config: WritingConfig, context: Context, sources: TableSources | None) -> _Made:
        """Raises UserError for a tokenizer that ends no text, and lengths that leave no room for one."""
        layout = make_layout(config, context)
        known = (context.hf_config or {}).get("text_to_text") if sources is None else None
        if known and config.template is None and not config.prefix:  # a bare checkpoint knows how it was trained
            layout = layout.as_trained(known)
        return cls(config, context, layout)

    @property
    def seq2seq(self) -> bool:
        """Whether an encoder reads."""
        return self.layout.start_id is not None

    @property
    def fields(self) -> tuple[Field, ...]:
        stream = "decoder_" if self.seq2seq else ""
        return Field("labels", "token", stream=stream), Field("weights", "token", np.float32, stream=stream)

    def longest_row(self, data: DataConfig) -> tuple[str, int]:
        target = data.max_target_length or data.max_length
        if not self.seq2seq:
            return "data.max_length + data.max_target_length", data.max_length + target
        return ("data.max_length", data.max_length) if target <= data.max_length else ("data.max_target_length", target)

    @property
    def generation(self) -> Generation:
        return self.layout.generation(self.context.generation)

    @property
    def written_rows(self) -> int | None:
        return self.config.eval.limit if self.config.eval.generate else 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        losses = (Metric("loss", False), Metric("perplexity", False), Metric("accuracy", headline=False))
        return (*self.scored, *losses) if self.config.eval.generate else (losses[0], *self.scored, *losses[1:])

    @cached_property
    def rows(self) -> TextRows:
        """Makes examples."""
        return TextRows(self.layout, self.context, self.config.target, self.config.key_of)

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        return self.rows.examples(table, labelled=labelled, key=key)

    def loss(self, outputs: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        terms = LossTerms(self.context.label_smoothing)
        return language_model_loss(terms=terms, chunk=self.context.logits_chunk)(outputs, batch)

    def measure(self, outputs: Any, batch: Mapping[str, jax.Array]) -> Outputs:
        return Outputs(measure_language_model(outputs, batch, chunk=self.context.logits_chunk))

    def decode(self, example: Example, outputs: Mapping[str, Any]) -> Written:
        hypotheses = outputs.get("hypotheses")
        if hypotheses is None:
            return Written(self._text(example, outputs["generated"]))
        texts = [(self._text(example, ids), score) for ids, score in hypotheses]
        return Written(texts[0][0], tuple(texts))

    def _text(self, example: Example, ids: np.ndarray | Sequence[int]) -> str:
        tokenizer, new = self.context.tokenizer, np.asarray(ids).tolist()
        while new and new[-1] in self.generation.eos_ids:  # a tokenizer may not call it special
            new.pop()
        if self.seq2seq or example.prompt is None:
            return tokenizer.decode(new).strip()
        return tokenizer.continuation(example.prompt.tolist(), new).strip()

    def prediction(self, row: Mapping[str, Any], kept: Written) -> dict[str, Any]:
        """{"text"}; with several hypotheses also `n_best`, a list of {"text", "score"}, the best first."""
        if not kept.others:
            return {"text": kept.text}
        return {"text": kept.text, "n_best": [{"text": text, "score": score} for text, score in kept.others]}

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        labelled = [answer for answer in answers if answer.label]
        found = self.compare([a.kept.text for a in labelled], [a.label for a in labelled]) if labelled else {}
        return found | (token_metrics(sums) if "nll" in sums else {})

    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """Returns the scores of texts, at least one, each against its references."""
        exact = [_folded(text) in map(_folded, given) for text, given in zip(texts, references, strict=True)]
        f1 = [self.text_score(text, given) for text, given in zip(texts, references, strict=True)]
        return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(f1))}

    def text_score(self, text: str, references: Sequence[str]) -> float:
        """Returns how good one text is, from 0 to 1; the report's order."""
        return score_v1(text, references).f1

    def signatures(self, answers: Sequence[Answer]) -> dict[str, str]:
        references = [answer.label for answer in answers if answer.label]
        return self.computed_with(references) if references else {}

    def computed_with(self, references: Sequence[Sequence[str]]) -> dict[str, str]:
        """Returns what scores against these references, of at least one text, are computed with, by name."""
        return {
            "exact_match": "white space folded",
            "f1": "words as in SQuAD 1.1: lower case, no articles, no punctuation",
        }

    def systems(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """Returns what simple systems write for each row, by name."""
        return {"copy_source": [self.source_text(row) for row in rows]}

    def source_text(self, row: Mapping[str, Any]) -> str:
        """Returns the text of a row's source, as the report shows it."""
        if self.config.source in row:
            return read_text(row[self.config.source])
        return self.layout.template.fill({column: read_text(row[column]) for column in self.config.columns})

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        split = test.examples()
        if not self.config.baselines or split is None:
            return {}
        usable = [example.row for example in split.examples if split.labels[example.row]]
        references = [split.labels[row] for row in usable]
        written = self.systems([split.table.rows[row] for row in usable])
        return {name: self.compare(texts, references) for name, texts in written.items()}

    def samples(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        return [
            {
                "prompt": self.source_text(answer.row),
                "text": answer.kept.text,
                "reference": answer.label[0] if answer.label else "",
            }
            for answer in answers[: self.config.eval.samples]
        ]

    def describe(self) -> dict[str, Any]:
        config = self.config.model_dump(exclude={"eval", "baselines"}, exclude_none=True)
        return {"problem": self.config.kind.replace("_", " "), "label_names": [], "task": config}

    def hf_config(self) -> dict[str, Any]:
        known, start = self.layout.known(), self.layout.start_id
        said: dict[str, Any] = {"text_to_text": known} if known else {}
        return said if start is None else {**said, "decoder_start_token_id": start}

    def hf_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        return tokenizer.framed_by(*self.layout.source_affixes) if self.seq2seq else tokenizer

    def show(self, batch: Batch) -> list[str]:
        tokenizer = self.context.tokenizer
        prefix = "decoder_" if self.seq2seq else ""
        tokens, segments = batch["tokens"][0], batch["segment_ids"][0]
        targets, weights = batch[f"{prefix}segment_ids"][0], batch["weights"][0] > 0
        lines = ["first packed row:"]
        for number in range(1, int(segments.max(initial=0)) + 1):
            read, asked = tokens[segments == number], batch["labels"][0][(targets == number) & weights]
            text, wanted = (tokenizer.decode(ids, skip_special_tokens=False) for ids in (read, asked))
            lines.append(f"  {number:3d}  {len(read)} tokens: {text!r}")
            lines.append(f"       asked, {len(asked)} tokens: {wanted!r}")
        padding = int((segments == 0).sum()) + (int((targets == 0).sum()) if prefix else 0)
        return [*lines, f"       {padding} tokens of padding"]

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        labelled = [(line, answer) for line, answer in enumerate(answers, 1) if answer.label]
        if not labelled:
            return []
        texts = [
            WrittenText(line, self.source_text(a.row), a.kept.text, a.label, self.text_score(a.kept.text, a.label))
            for line, a in labelled
        ]
        return text_sections(texts, self.signatures(answers))


def _folded(text: str) -> str:
    return " ".join(text.split())
