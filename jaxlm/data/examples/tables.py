"""Labelled rows for fine-tuning: read, cleaned, and tokenized split by split."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxlm.config.schema import Config
from jaxlm.data.sources.cleaning import clean_tables
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint
from jaxlm.parallel import processes
from jaxlm.setup.tokenizer import make_tokenizer
from jaxlm.tasks import Classification
from jaxlm.tasks.classification import Examples, text_columns
from jaxlm.tokenizer.tokenizer import Tokenizer


def prepare_rows(
    config: Config, checkpoint: HFCheckpoint | None, cache: Path | None, splits: Sequence[str]
) -> tuple[Classification, Tokenizer, dict[str, Examples], dict[str, int]]:
    """Returns task, tokenizer, splits, and what the cleaning counted; arguments as in `prepare.prepare`."""
    assert config.task.kind == "classification"
    tables = load_tables(config, splits)
    known_labels = None if checkpoint is None or config.model.new_head else checkpoint.label_names
    task = Classification.from_data(config.task, tables.get("train"), known_labels)
    columns = text_columns(config.task)
    tables, cleaned = clean_tables(tables, columns, config.data.clean)
    train = tables.get("train")
    texts = None if train is None else lambda: (str(row[column]) for row in train.rows for column in columns)
    tokenizer = processes.first_then_others(lambda: make_tokenizer(config, checkpoint, cache, texts))
    examples = {
        split: task.examples(table, tokenizer, config.data, key=f"data.{split}") for split, table in tables.items()
    }
    for split, tokenized in examples.items():
        if not tokenized.examples:
            raise UserError(f"data.{split}: no usable row in {tokenized.table.name}")
    return task, tokenizer, examples, cleaned


def load_tables(config: Config, splits: Sequence[str]) -> dict[str, Table]:
    """Reads the splits that the config names."""
    sources = {split: getattr(config.data, split) for split in splits}
    return {
        split: load(source, key=f"data.{split}", split=split, on_bad_row=config.data.on_bad_row)
        for split, source in sources.items()
        if source is not None
    }
