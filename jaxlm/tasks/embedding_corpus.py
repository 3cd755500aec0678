"""Further texts that sentence embeddings are searched among: `data.corpus`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.example import Examples
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.cleaning import clean_tables
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.table import Table, join
from jaxlm.errors import UserError
from jaxlm.tasks.embedding_rows import FALLBACK, EmbeddingConfig

KEY = "data.corpus"


@dataclass(frozen=True)
class EmbeddingSources(TableSources):
    """The tables of a run, and the further texts, if any."""

    corpus: Table | None = None


def open_corpus(config: EmbeddingConfig, data: DataConfig, sources: TableSources) -> EmbeddingSources:
    """Adds the texts of `data.corpus` to what was opened, where a split is evaluated.

    Raises:
      UserError: texts that cannot be read, or that are of no use to scored pairs.
    """
    corpus: Table | None = None
    if data.corpus is not None:
        if config.label is not None:
            raise UserError(f"{KEY}: scored pairs are not searched for; leave it out, or leave out task.label")
        if set(sources.tables) & {"validation", "test"}:
            corpus = load(data.corpus, key=KEY, split="train", on_bad_row=data.on_bad_row)
            column = corpus_column(config, corpus)
            cleaned, _ = clean_tables({"corpus": corpus}, (column,), data.clean)
            corpus = cleaned["corpus"]
    return EmbeddingSources(**vars(sources), corpus=corpus)


def corpus_column(config: EmbeddingConfig, corpus: Table) -> str:
    """The column of the texts: that of the positives, else `text`.

    Raises:
      UserError: the corpus has neither.
    """
    column = config.texts[-1]
    if column not in corpus.columns and FALLBACK in corpus.columns:
        return FALLBACK
    corpus.require(column, key=KEY)
    return column


def with_corpus(split: Examples, corpus: Examples) -> Examples:
    """Returns a split whose table ends with the rows of a corpus, which have no labels."""
    first, table = len(split.table.rows), split.table
    merged = replace(join((table, corpus.table), table.name), skipped=table.skipped)
    moved = [replace(example, row=example.row + first) for example in corpus.examples]
    errors = {**split.errors, **{row + first: message for row, message in corpus.errors.items()}}
    counts = {**split.counts, "corpus_texts": len(moved)}
    return Examples(merged, [*split.examples, *moved], [*split.labels, *corpus.labels], counts, errors)
