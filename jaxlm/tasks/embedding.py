"""Sentence embeddings: vectors of texts, learned from pairs, triplets or scored pairs; scored by cosines."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.dataset import Dataset
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sentence_modules import KEY, SentenceModules
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field
from jaxlm.metrics.embeddings import RETRIEVAL
from jaxlm.objectives.embeddings import NEGATIVE, POSITIVE, EmbeddingLoss
from jaxlm.report.format import format_name
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.base import RowTask
from jaxlm.tasks.embedding_corpus import KEY as CORPUS
from jaxlm.tasks.embedding_corpus import EmbeddingSources, corpus_column, open_corpus, with_corpus
from jaxlm.tasks.embedding_report import pair_report, retrieval_report
from jaxlm.tasks.embedding_rows import EmbeddingConfig, answered_columns, make_examples
from jaxlm.tasks.embedding_scores import RowVectors, Search, pair_scores, tfidf_scores
from jaxlm.tasks.first_row import show_first_row
from jaxlm.tasks.records import Answer, Context, Metric, Outputs, Request

log = logging.getLogger("jaxlm")

_ROLES = {POSITIVE: "positive", NEGATIVE: "negative"}


@dataclass(frozen=True, eq=False)
class Embedding(RowTask):
    """Gives each text of a row a vector; those of a row are one group, and the loss sees the whole batch.

    Attributes:
      config: the section `task`.
      context: settings and tokenizer.
      modules: how a vector is made, by config and checkpoint.
    """

    config: EmbeddingConfig
    context: Context
    modules: SentenceModules

    Config = EmbeddingConfig
    head = "embedding"
    vectors = True
    unused_data_keys = (
        "concat_documents", "long_text", "stride", "max_target_length", "sampling",
        "augment",  # a copy of a row is a false negative of it
    )  # fmt: skip

    @classmethod
    def open(cls, config: EmbeddingConfig, request: Request) -> EmbeddingSources:
        return open_corpus(config, request.data, super().open(config, request))

    @classmethod
    def text_columns(cls, config: EmbeddingConfig) -> tuple[str, ...]:
        return (*config.texts, *config.negatives)

    @classmethod
    def input_columns(cls, config: EmbeddingConfig, columns: Sequence[str]) -> tuple[str, ...]:
        return answered_columns(config, columns)[:1]

    @classmethod
    def create(cls, config: EmbeddingConfig, context: Context, sources: TableSources | None) -> Embedding:
        """Raises UserError for settings that do not apply, and for batches that hold nothing to compare with."""
        if context.label_smoothing:
            raise UserError("train.label_smoothing: not for sentence embeddings; leave it out")
        if sources is not None and len(config.texts) < 2:
            raise UserError(
                "task.text: expected two columns, [anchor, positive] say, to learn from; one is for `jaxlm predict`"
            )
        training = sources is not None and "train" in sources.tables
        if training and context.batch_size == 1 and config.objective in ("ranking", "cosent"):
            raise UserError(
                f"train.batch_size=1: task.loss={config.objective} compares the rows of a batch, and a single pair has "
                "nothing to be compared with; expected at least 2"
            )
        given = (context.hf_config or {}).get(KEY)
        modules = given if isinstance(given, SentenceModules) else SentenceModules()
        changes = {"pooling": config.pooling, "normalize": config.normalize}
        modules = replace(modules, **{name: value for name, value in changes.items() if value is not None})
        if modules.pooling == "cls" and context.pool == "last":
            raise UserError(
                "task.pooling=cls: the first token of this model sees no other; expected mean or last_token"
            )
        return cls(config, context, modules)

    @cached_property
    def _loss(self) -> EmbeddingLoss:
        config = self.config
        return EmbeddingLoss(
            config.objective, config.temperature, config.margin, config.symmetric, tuple(config.dimensions)
        )

    @property
    def fields(self) -> tuple[Field, ...]:
        fields = [Field("token_types", "token"), Field("roles", "slot"), Field("texts", "slot", shape=(3,), fill=-1)]
        if self.modules.pooling != "mean":
            fields.append(Field("slot_positions", "position"))
        if self.config.label is not None:
            fields.append(Field("scores", "slot", np.float32))
        return tuple(fields)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Scores of shorter vectors are called spearman/64 and so on."""
        names = RETRIEVAL if self.config.label is None else ("spearman", "pearson")
        whole = [Metric(name, headline=name != "pearson") for name in names]
        if self.config.objective == "cosine_mse":
            whole.append(Metric("loss", higher_is_better=False))
        cut = [Metric(f"{name}/{size}", headline=False) for size in self.config.dimensions for name in names]
        return (*whole, *cut)

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        return make_examples(self.config, self.context, self.modules, table, labelled=labelled, key=key)

    def datasets(self, sources: EmbeddingSources) -> dict[str, Dataset]:
        made = super().datasets(sources)
        for split, dataset in made.items():
            examples = dataset.examples()
            assert examples is not None
            texts = {example.host.text for example in examples.examples if example.host.role == POSITIVE}
            negatives = any(example.host.role == NEGATIVE for example in examples.examples)
            if self.config.label is None and not negatives and len(texts) < 2:
                raise UserError(
                    f"data.{split}: a single pair, or always the same {self.config.texts[1]!r}: a text has no other to "
                    "be compared with; expected at least two different pairs, or a column of negative texts"
                )
            size, rows = self.context.batch_size, len({example.row for example in examples.examples})
            if split == "train" and size and rows > size and rows % size == 1 and self._loss.kind == "ranking":
                log.info("data.train: the last of %d rows is a batch by itself, which teaches nothing", rows)
        return made if sources.corpus is None else {**made, **self._searched(made, sources.corpus)}

    def _searched(self, made: Mapping[str, Dataset], corpus: Table) -> dict[str, Dataset]:
        """The splits that are evaluated, with the texts of a corpus after their rows."""
        config = self.config.model_copy(update={"text": corpus_column(self.config, corpus)})
        texts = make_examples(config, self.context, self.modules, corpus, labelled=False, key=CORPUS)
        splits = {split: dataset.examples() for split, dataset in made.items() if split != "train"}
        return {s: RowDataset(with_corpus(e, texts), self.fields) for s, e in splits.items() if e is not None}

    def loss(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return self._loss(outputs, batch)

    def measure(self, outputs: jax.Array, batch: Mapping[str, jax.Array]) -> Outputs:
        """The vectors alone: what a loss over a batch is, depends on what is in the batch."""
        if self.modules.normalize:
            length = jnp.sqrt(jnp.square(outputs).sum(axis=-1, keepdims=True))
            outputs = outputs / jnp.maximum(length, 1e-12)
        return Outputs(slots={"vector": outputs})

    def decode(self, example: Example, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.array(outputs["vector"])

    def answer(self, row: Mapping[str, Any], parts: Sequence[tuple[Example, np.ndarray]]) -> RowVectors:
        return RowVectors(tuple(example.host for example, _ in parts), np.stack([vector for _, vector in parts]))

    def prediction(self, row: Mapping[str, Any], kept: RowVectors) -> dict[str, Any]:
        """{"vector"} of the row's first text; of a row with both texts also `score`, their cosine."""
        shortest = [float(str(value)) for value in kept.vectors[0]]  # as few digits as float32 needs
        partner = kept.of_role(POSITIVE)
        return {"vector": shortest} if partner is None else {"vector": shortest, "score": kept.cosine()}

    def scores(self, sums: Mapping[str, float], answers: Sequence[Answer], dataset: Dataset) -> dict[str, float]:
        labelled = [answer for answer in answers if answer.label is not None]
        if not labelled:
            return {}
        width = labelled[0].kept.vectors.shape[1]
        found: dict[str, float] = {}
        for size in (None, *(size for size in self.config.dimensions if size < width)):
            made = self._scores(answers, size)
            found |= made if size is None else {f"{name}/{size}": value for name, value in made.items()}
        if self.config.objective == "cosine_mse":
            errors = [answer.kept.cosine() - answer.label for answer in labelled]
            found["loss"] = float(np.mean(np.square(errors)))
        return found

    def _scores(self, answers: Sequence[Answer], size: int | None) -> dict[str, float]:
        if self.config.label is not None:
            return pair_scores(answers, size)
        return Search.of(answers).scores(size)

    def baselines(self, train: Dataset, test: Dataset) -> dict[str, dict[str, float]]:
        split, other = train.examples(), test.examples()
        if not self.config.baselines or split is None or other is None:
            return {}
        return {"tfidf": tfidf_scores(split, other, scored=self.config.label is not None)}

    def describe(self) -> dict[str, Any]:
        config, modules = self.config, self.modules
        task = {"kind": config.kind, "text": list(config.texts), "negative": list(config.negatives),
                "label": config.label, "loss": config.objective, "pooling": modules.pooling,
                "normalize": modules.normalize, "dimensions": list(config.dimensions)}  # fmt: skip
        return {"problem": "sentence embeddings", "label_names": [], "task": task}

    def show(self, batch: Batch) -> list[str]:
        def describe(slot: int, inside: np.ndarray) -> str:
            role = _ROLES.get(int(batch["roles"][0, slot]), "anchor")
            return f", {role}: {self.context.tokenizer.decode(batch['tokens'][0][inside], skip_special_tokens=False)}"

        return show_first_row(batch, "text", describe)

    def report(self, answers: Sequence[Answer]) -> list[ReportSection]:
        labelled = [answer for answer in answers if answer.label is not None]
        if not labelled:
            return []
        make = retrieval_report if self.config.label is None else pair_report
        width = labelled[0].kept.vectors.shape[1]
        sizes = [size for size in sorted(set(self.config.dimensions), reverse=True) if size < width]
        table = [[size or width, *self._scores(answers, size).values()] for size in (None, *sizes)] if sizes else []
        names = ["Length", *map(format_name, self._scores(answers, None))]
        cut = [ReportSection("Shorter vectors", "table", {"columns": names, "rows": table})] if sizes else []
        return [*make(answers), *cut]

    def hf_files(self, width: int) -> dict[str, str]:
        modules = self.modules
        prompts = {**(modules.prompts or {}), **self.config.prompts}
        return replace(modules, prompts=prompts, max_length=self.context.data.max_length).files(width)
