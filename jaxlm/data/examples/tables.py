"""Labelled rows read and cleaned, split by split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.text_digests import digest_texts
from jaxlm.data.examples.folds import hold_out
from jaxlm.data.examples.held_out import hold_out_shares
from jaxlm.data.examples.thinning import thin_labels
from jaxlm.data.sources.cleaning import clean_tables, replace_labels
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ColumnRoles:
    """What columns of tables are for.

    Attributes:
      texts: hold texts.
      labels: hold labels; what `data.clean.labels` is applied to.
      label_separator: what stands between several labels of a cell.
      groups: whose texts keep rows on one side of a split; None: `texts`.
      key_of: the config key that names a column, for messages.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...] = ()
    label_separator: str | None = None
    groups: tuple[str, ...] | None = None
    key_of: Callable[[str], str] = lambda column: "task"


@dataclass(frozen=True)
class TableSources:
    """The tables that a config names.

    Attributes:
      tables: by split.
      cleaned: what the cleaning did, counted.
      text_columns: the columns that hold texts.
      added_texts: what a task puts beside the texts of each row.
      copies: how many rows at the end of the training table are edited copies of others.
      seed: of the run.
      before_fold: the training rows, and those of the fold that is held out; None: no fold is.
    """

    tables: Mapping[str, Table]
    cleaned: Mapping[str, int]
    text_columns: tuple[str, ...]
    added_texts: tuple[str, ...] = ()
    copies: int = 0
    seed: int = 0
    before_fold: Table | None = None

    @property
    def labelled(self) -> Table | None:
        """The rows that say which labels there are: of each run of a cross-validation the same; None: nothing is
        trained."""
        return self.tables.get("train") if self.before_fold is None else self.before_fold

    @property
    def can_train_tokenizer(self) -> bool:
        return "train" in self.tables

    def texts(self) -> Iterator[str]:
        """The training texts and what is added to each row, for a tokenizer to be trained on."""
        train = self.tables["train"]
        rows = train.rows[: len(train) - self.copies]
        cells = (cell for row in rows for cell in (*map(row.get, self.text_columns), *self.added_texts))
        words = (" ".join(map(str, cell)) if isinstance(cell, list) else cell for cell in cells)
        return (str(text) for text in words if isinstance(text, str | int | float) and not _is_no_text(text))

    def texts_digest(self) -> str:
        """Hex SHA-256 of the training texts."""
        return digest_texts(self.texts())


def _is_no_text(cell: str | float) -> bool:
    return isinstance(cell, bool) or cell != cell


def open_tables(data: DataConfig, splits: Sequence[str], columns: ColumnRoles) -> TableSources:
    """Reads and cleans the splits that a config names.

    Raises:
      UserError: a source that cannot be read, or a bad row (unless `data.on_bad_row` is skip); training rows without a
        text column.
    """
    kept = {"train", *splits} if data.fold is not None and "validation" in splits else set(splits)
    read = kept | ({"train"} if kept & set(data.shares) else set[str]())
    tables = {
        split: load(source, key=f"data.{split}", split=split, on_bad_row=data.on_bad_row)
        for split in SPLITS
        if split in read and split not in data.shares and (source := getattr(data, split)) is not None
    }
    if "train" in tables:
        for column in columns.texts:
            tables["train"].require(column, key=columns.key_of(column))
    if data.shares and "train" in tables:
        roles = columns.groups or columns.texts, columns.labels, columns.label_separator
        tables = {**tables, **hold_out_shares(tables["train"], data.shares, *roles)}
        tables = {split: tables[split] for split in SPLITS if split in kept and split in tables}
    tables, cleaned = clean_tables(tables, columns.texts, data.clean)
    if data.clean.labels:
        if not columns.labels:
            raise UserError("data.clean.labels: this task has no column of labels; leave it out")
        changed = columns.labels, data.clean.labels, columns.label_separator
        tables, cleaned["labels_changed"] = replace_labels(tables, *changed)
    if data.keep_labels and "train" in tables:
        tables = {**tables, "train": thin_labels(tables["train"], columns.texts, columns.labels, data.keep_labels)}
    before_fold = None
    if data.fold is not None and "train" in tables:
        before_fold = tables["train"] if "train" in splits else None
        train, held_out = hold_out(tables["train"], columns.texts, columns.labels, data.fold)
        tables = {**tables, "train": train, "validation": held_out}
        tables = {split: tables[split] for split in SPLITS if split in splits and split in tables}
    return TableSources(tables, cleaned, columns.texts, before_fold=before_fold)
