"""Looks through the labelled rows that a config names: what is in them, and what a run would refuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.check.splits import (
    SHOWN,
    Copies,
    Found,
    Lengths,
    SplitCheck,
    alike_labels,
    count_labels,
    measure_lengths,
)
from jaxlm.config.schema import Config
from jaxlm.data.examples.example import Examples
from jaxlm.data.examples.held_out import labels_of_cell, text_of_row
from jaxlm.data.examples.tables import SPLITS, TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.setup.setup import TOKENS, make_context
from jaxlm.setup.tokenizer import make_tokenizer, open_checkpoint
from jaxlm.tasks import TASKS
from jaxlm.tasks.base import RowTask, Task
from jaxlm.tasks.records import Request

_UNCUT = 1 << 24
"""A length that no text has, so that none is cut."""
_PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))


@dataclass(frozen=True)
class DataCheck:
    """The findings of a config's data.

    Attributes:
      name: of the run.
      kind: of the task.
      splits: those that there are.
      leaks: of each two splits, rows of the first whose texts also stand in the second: equal, and equal or nearly so.
      alike: labels that differ only by case or spaces.
      refusals: what a run would refuse.
    """

    name: str
    kind: str
    splits: Sequence[SplitCheck]
    leaks: Mapping[tuple[str, str], tuple[Found, Found]]
    alike: Sequence[Sequence[str]]
    refusals: Sequence[str]

    def json(self) -> dict[str, Any]:
        """Returns it as JSON values."""
        return {
            "name": self.name,
            "task": self.kind,
            "splits": {split.name: split.json() for split in self.splits},
            "leaks": [
                {"rows_of": one, "also_in": other, "equal": equal.json(), "equal_or_nearly": near.json()}
                for (one, other), (equal, near) in self.leaks.items()
            ],
            "labels_that_differ_by_case_or_spaces": [list(names) for names in self.alike],
            "refused": list(self.refusals),
        }


def check_data(config: Config) -> DataCheck:
    """Reads, cleans and tokenizes the rows of a config, and looks through them. No model is built.

    Raises:
      UserError: a task that reads documents; data that cannot be read at all.
    """
    kind = TASKS[config.task.kind]
    if not issubclass(kind, RowTask):
        raise UserError(
            f"task.kind={config.task.kind}: `jaxlm check` looks through labelled rows, and this reads documents"
        )
    if config.data.train is None and config.data.validation is None and config.data.test is None:
        raise UserError("data.train: expected rows to look through")
    stops = config.data.on_bad_row == "stop"
    lenient = config.data.model_copy(update={"on_bad_row": "skip", "augment": None, "max_length": _UNCUT,
                                             "max_target_length": None, "long_text": "truncate"})  # fmt: skip
    sources = kind.open(config.task, Request(lenient, SPLITS, _token_cache(config), config.seed))
    refusals: list[str] = []
    task = None
    try:
        task = _make_task(config.model_copy(update={"data": lenient}), sources)
    except UserError as error:
        refusals.append(str(error))
    separator = getattr(config.task, "label_separator", None)
    columns = _label_columns(config)
    copies = Copies(sources.tables, kind.text_columns(config.task), kind.group_columns(config.task))
    splits: list[SplitCheck] = []
    for name, table in sources.tables.items():
        examples = None
        try:
            examples = None if task is None else task.examples(table, labelled=True, key=f"data.{name}")
        except UserError as error:
            refusals.append(str(error))
        unusable = _unusable(table, kind.text_columns(config.task), examples)
        if stops and unusable.rows:
            refusals.append(f"{unusable.places[0]} (data.on_bad_row=skip leaves such rows out: {unusable.rows} in all)")
        if stops and table.skipped:
            refusals.append(f"{table.name}: {table.skipped} rows cannot be read (data.on_bad_row=skip leaves them out)")
        labels = count_labels(table, columns, separator)
        cells = [", ".join(labels_of_cell(row.get(columns[0]), separator)) for row in table.rows] if labels else []
        splits.append(
            SplitCheck(
                name,
                table.name,
                len(table) + table.skipped,
                table.skipped,
                unusable,
                labels,
                _lengths(config, table, kind.text_columns(config.task), examples),
                copies.equal(name),
                copies.contradicting(name, cells) if labels else Found(0, ()),
                copies.nearly_equal(name),
            )
        )
    pairs = [pair for pair in _PAIRS if set(pair) <= set(sources.tables)]
    leaks = {pair: (copies.shared(*pair, near=False), copies.shared(*pair, near=True)) for pair in pairs}
    train = next((split.labels for split in splits if split.name == "train"), {})
    return DataCheck(config.name, config.task.kind, splits, leaks, alike_labels(train), refusals)


def _label_columns(config: Config) -> tuple[str, ...]:
    """The column whose values are counted: of labels, of the tags of words, or of the right candidates."""
    columns = TASKS[config.task.kind].label_columns(config.task)
    if columns or getattr(config.task, "text", None) is None and not hasattr(config.task, "tags"):
        return columns
    other = getattr(config.task, "label", None) or getattr(config.task, "tags", None)
    return (other,) if isinstance(other, str) else ()


def _token_cache(config: Config) -> Path:
    return Path(config.data.token_cache or Path(config.logging.directory) / TOKENS)


def _make_task(config: Config, sources: TableSources) -> Task:
    checkpoint = open_checkpoint(config)
    tokenizer = make_tokenizer(config, checkpoint, None, sources)
    if config.data.split_special_tokens is not None:
        tokenizer = tokenizer.splitting(config.data.split_special_tokens)
    return TASKS[config.task.kind].create(config.task, make_context(config, tokenizer, checkpoint), sources)


def _unusable(table: Table, columns: Sequence[str], examples: Examples | None) -> Found:
    """Rows that no example could be made of; where nothing could be tokenized, those that lack a text."""
    if examples is None:
        lacking = [
            (i, column)
            for i, row in enumerate(table.rows)
            for column in columns
            if (cell := row.get(column)) is None or isinstance(cell, str) and not cell.strip()
        ]
        places = [f"{table.where(i)}: {column} is empty; expected a text" for i, column in lacking[:SHOWN]]
        return Found(len({i for i, _ in lacking}), places)
    errors = examples.errors
    return Found(len(errors), [errors[i] for i in sorted(errors)[:SHOWN]])


def _lengths(config: Config, table: Table, columns: Sequence[str], examples: Examples | None) -> dict[str, Lengths]:
    """The lengths of a split's rows in tokens; in words, where nothing could be tokenized."""
    if examples is None or not examples.examples:
        words = [len(text_of_row(row, columns).split()) for row in table.rows]
        return {"text": measure_lengths(words, "words", None)} if words else {}
    data = config.data
    limits = {"text": ("tokens", data.max_length)}
    if "decoder_tokens" in examples.examples[0].arrays:
        limits["target"] = ("decoder_tokens", data.max_target_length or data.max_length)
    return {
        name: measure_lengths([len(example.arrays[array]) for example in examples.examples], "tokens", limit)
        for name, (array, limit) in limits.items()
    }
