"""`CorpusDataset`: a split of tokenized documents, cut into rows, for training and for evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.build import Tokenizing, Wrap
from jaxlm.data.corpus.cache import open_corpora
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.loader import CorpusLoader, corpus_eval_batches
from jaxlm.data.corpus.row_plan import Cost, RowPlan, Segment, plan_corpus
from jaxlm.data.corpus.stored import MEMORY
from jaxlm.data.corpus.text_digests import digest_texts
from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.shapes import Shapes, round_up
from jaxlm.data.sources.cleaning import clean_text
from jaxlm.errors import Interrupted, Stop, UserError
from jaxlm.fields import Batch
from jaxlm.parallel import processes
from jaxlm.tokenizer.tokenizer import Tokenizer

EVAL_TOKENS = 4096
"""Tokens of an evaluation batch, about, unless `data.eval_rows` says otherwise."""


@runtime_checkable
class RowMaker(Protocol):
    """How an objective makes rows out of segments of documents."""

    wrap: ClassVar[Wrap]
    """Special tokens in the tokenized corpus: "documents" (around each) or "none" (the row adds its own)."""
    lookahead: ClassVar[int]
    """Tokens that a segment carries beyond its inputs: 1 where the next token is predicted."""

    @property
    def overhead(self) -> int:
        """Columns that a segment takes up in addition to its tokens."""
        ...

    @property
    def cost(self) -> Cost | None:
        """Columns of a segment by its tokens, where that is not their number and `overhead`."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides a row other than its text, under names for messages."""
        ...

    def row(self, segments: Sequence[Segment], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The arrays of one row; of no segments, padding of weight 0."""
        ...


class Unpredicted(NamedTuple):
    """What no row asks for."""

    tokens: int
    bytes: int
    """UTF-8 bytes of text; special tokens have none."""


@dataclass(frozen=True)
class CorpusDataset:
    """Rows of one corpus, or of a mixture of several; a `Dataset`."""

    plans: tuple[RowPlan, ...]
    weights: tuple[float, ...]
    maker: RowMaker

    def describe(self) -> dict[str, int]:
        corpora = [plan.corpus for plan in self.plans]
        counts = {
            "documents": sum(corpus.num_documents for corpus in corpora),
            "tokens": sum(corpus.num_tokens for corpus in corpora),
            "bytes": sum(corpus.num_bytes for corpus in corpora),
            "rows": sum(plan.num_rows for plan in self.plans),
        }
        for corpus in corpora:
            for name, count in corpus.counts.items():
                counts[name] = counts.get(name, 0) + count
        return counts

    def unpredicted(self, tokenizer: Tokenizer) -> Unpredicted:
        """Counts the first tokens of the documents (laid end to end: of the corpus), which nothing stands before."""
        tokens = num_bytes = 0
        for plan in self.plans:
            ids = plan.first_tokens()
            tokens += len(ids)
            kinds, counts = (array.tolist() for array in np.unique(ids, return_counts=True))
            num_bytes += sum(tokenizer.num_bytes(i) * n for i, n in zip(kinds, counts, strict=True))
        return Unpredicted(tokens, num_bytes)

    def examples(self) -> None:
        return None

    def fingerprint(self) -> str:
        return json.dumps([plan.corpus.fingerprint for plan in self.plans])

    def loader(self, layout: BatchLayout) -> CorpusLoader:
        return CorpusLoader(
            list(zip(self.plans, self.weights, strict=True)),
            build=self.maker.row,
            rows=train_rows(layout),
            seed=layout.seed,
            share=layout.train_share,
            settings=self.maker.settings,
        )

    def batches(self, layout: BatchLayout) -> Iterator[Batch]:
        rows = layout.eval_rows or max(1, EVAL_TOKENS // layout.max_length)
        return corpus_eval_batches(
            self.plans, self.maker.row, round_up(rows, layout.share.num_shards), share=layout.share
        )

    def beginnings(self, number: int, num_tokens: int) -> list[list[int]]:
        """The first tokens of the first documents."""
        corpus = self.plans[0].corpus
        bounds = [
            (int(corpus.offsets[i]), int(corpus.offsets[i + 1])) for i in range(min(number, corpus.num_documents))
        ]
        return [corpus.read(start, min(stop, start + num_tokens)).tolist() for start, stop in bounds]


@dataclass(frozen=True)
class EmptyDataset:
    """The shapes of a corpus's batches without a corpus, for steps that are compiled and not run; a `Dataset`."""

    maker: RowMaker

    def describe(self) -> dict[str, int]:
        return {}

    def examples(self) -> None:
        return None

    def fingerprint(self) -> str:
        return ""

    def loader(self, layout: BatchLayout) -> EmptyLoader:
        return EmptyLoader(self.maker, layout)

    def batches(self, layout: BatchLayout) -> Iterator[Batch]:
        return iter(())


class EmptyLoader:
    """Endless batches that hold only padding: all rows of an objective have the same shapes."""

    steps_per_epoch = None
    padding_share = 0.0
    fingerprint = "padding"

    def __init__(self, maker: RowMaker, layout: BatchLayout) -> None:
        rows = train_rows(layout)
        row = maker.row([], np.random.default_rng(0))
        self._batch = {name: np.broadcast_to(array, (rows, *array.shape)) for name, array in row.items()}
        self.shapes = Shapes((layout.max_length,), 1, (rows,), rows)

    def __next__(self) -> Batch:
        return self._batch

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def train_rows(layout: BatchLayout) -> int:
    """Rows of a training batch of a corpus.

    Raises:
      UserError: they do not divide over devices and micro-batches.
    """
    multiple = layout.train_multiple
    if layout.batch_size is None:
        return round_up(max(1, (layout.batch_tokens or 0) // layout.max_length), multiple)
    if layout.batch_size % multiple:
        raise UserError(
            f"train.batch_size={layout.batch_size}: expected a multiple of {multiple}, the data-parallel devices times "
            "train.grad_accum_steps; or give train.batch_tokens, which is rounded"
        )
    return layout.batch_size


@dataclass(frozen=True)
class CorpusSources:
    """The corpora that a config names, not yet tokenized.

    Attributes:
      data: the section `data`.
      splits: those to open.
      text_column: the column of the documents, where they come as rows.
      cache: folder of all tokenized corpora.
      seed: decides which stretches of the training documents share a row.
      stop: asked every few seconds; names the signal that asks for an end, if any.
    """

    data: DataConfig
    splits: Sequence[str]
    text_column: str
    cache: Path
    seed: int
    stop: Stop

    @property
    def can_train_tokenizer(self) -> bool:
        return "train" in self.splits and self.data.train is not None

    def texts(self) -> Iterator[str]:
        """The training texts, for a tokenizer to be trained on; Interrupted where `stop` names a signal."""
        for documents in self._training_documents():
            for piece in documents.read():
                if (signal := self.stop()) is not None:
                    raise Interrupted(f"{signal}: the vocabulary is not learned yet; the same command starts it again")
                yield clean_text(piece.text, self.data.clean)

    def texts_digest(self) -> str:
        """Hex SHA-256 of all that decides the training texts: the content of the files, how they are read and cleaned.

        Digests of files are remembered in the cache, as those of `open_corpora`.
        """
        contents = Contents(self.cache / MEMORY)
        clean = self.data.clean.model_dump(include={"unicode", "control_characters", "whitespace"})
        digest = digest_texts([json.dumps([clean, [d.identity(contents) for d in self._training_documents()]])])
        contents.save()
        return digest

    def _training_documents(self) -> Iterator[Documents]:
        source = self.data.train
        assert source is not None
        for i, part in enumerate(source.mixture or (source,)):
            key = "data.train" if source.mixture is None else f"data.train.mixture[{i}]"
            yield Documents(part, key=key, split="train", text_column=self.text_column, on_bad_row=self.data.on_bad_row)

    def datasets(self, maker: RowMaker, tokenizer: Tokenizer) -> dict[str, CorpusDataset]:
        """Tokenizes the corpora, or finds them in the cache, and plans their rows.

        Raises:
          Interrupted: `stop` named a signal; what is tokenized is saved.
          UserError: a source cannot be read, or holds no text.
        """
        how = Tokenizing(self.text_column, tokenizer, maker.wrap, self.cache, self.stop)
        opened = processes.first_then_others(lambda: open_corpora(self.data, self.splits, how))
        return {
            split: CorpusDataset(
                tuple(
                    plan_corpus(
                        corpus,
                        row_length=self.data.max_length,
                        lookahead=maker.lookahead,
                        concat_documents=self.data.concat_documents,
                        overhead=maker.overhead,
                        cost=maker.cost,
                        seed=self.seed if split == "train" else None,
                    )
                    for corpus, _ in parts
                ),
                tuple(weight for _, weight in parts),
                maker,
            )
            for split, parts in opened.items()
        }
