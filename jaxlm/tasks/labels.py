"""Labels of classification rows: which problem they pose, their names and counts, and their ids."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.data.label_names import hf_label_names
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError, did_you_mean
from jaxlm.tasks.label_cells import (
    LONGEST_NAME,
    all_numbers,
    holds_lists,
    infer_problem,
    is_integer,
    is_missing,
    label_name,
    multi_hot_length,
    number,
    resembles_number,
    split_labels,
    zeros_and_ones,
)

log = logging.getLogger("jaxlm")

_SHOWN = 20
"""Labels that a line of the log names."""


@dataclass(frozen=True)
class LabelSet:
    """The problem of a classification and its labels.

    Attributes:
      problem: binary, multiclass, multilabel or regression.
      names: in the order of the head's outputs; of a regression, its column.
      why: what told the problem.
      source: where the names come from.
      counts: training rows of each label; {}: no training rows.
      numbered: rows may say a label by its id.
      spellings: how rows spell a name, where they differ from it by case or surrounding spaces.
    """

    problem: str
    names: tuple[str, ...]
    why: str = ""
    source: str = ""
    counts: Mapping[str, int] = field(default_factory=dict[str, int])
    numbered: bool = True
    spellings: Mapping[str, str] = field(default_factory=dict[str, str])

    def describe(self) -> str:
        """The problem, the labels in order with their counts, and why."""
        because = f" ({self.why})" if self.why else ""
        if self.problem == "regression":
            return f"regression of {self.names[0]}{because}"
        named = [f"{n} {self.counts[n]:,}" if n in self.counts else n for n in self.names[:_SHOWN]]
        more = f", ... {len(self.names) - _SHOWN} more" if len(self.names) > _SHOWN else ""
        positive = f"; positive: {self.positive}" if self.positive is not None else ""
        return f"{self.problem}{because}; labels in order, from {self.source}: {', '.join(named)}{more}{positive}"

    @property
    def positive(self) -> str | None:
        """The label of a binary problem that precision, recall, F1 and the threshold are of."""
        return self.names[1] if self.problem == "binary" else None


def labels_of_rows(
    table: Table | None,
    column: str,
    *,
    problem: str,
    names: Sequence[str] | None,
    separator: str | None,
    known: Sequence[str] | None,
) -> LabelSet:
    """The labels of a run that is trained.

    Args:
      table: the training rows; None: only `names` or `known` say what there is.
      problem: as `task.problem`.
      names: those of `task.labels`.
      known: those of the checkpoint whose head is taken over.
    Raises:
      UserError: no source of labels, or labels that do not fit the problem.
    """
    values = [] if table is None else [row[column] for row in table.rows]
    asked, why = problem, "task.problem" if problem != "auto" else ""
    if problem == "auto" and values:
        problem, why = infer_problem(values, separator)
    if problem == "regression":
        return LabelSet(problem, (column,), why)
    found = _count(values, problem, separator, names)
    spellings: dict[str, str] = {}
    source = "task.labels"
    if names is not None and len(set(names)) < len(names):
        repeated = next(name for name in names if list(names).count(name) > 1)
        raise UserError(f"task.labels: {repeated!r} stands twice; expected different names")
    if names is None and known:
        mapped = {name: _match(name, known) for name in found}
        if None not in mapped.values():
            names, source = known, "the checkpoint"
            spellings = {name: to for name, to in mapped.items() if to is not None and to != name}
        else:
            say_renamed(tuple(known), tuple(found))
    numbered = names is not None
    if names is None:
        names, source = tuple(found), "the training rows"
    if table is not None and len(names) < (1 if problem == "multilabel" else 2):
        encoder = LabelEncoder(LabelSet(problem, tuple(names)), column, separator)
        for row in range(len(table)):
            encoder.encode(table, row)  # a bad cell may be why there are so few
    if problem in ("auto", "binary", "multiclass"):
        if asked == "binary" and len(names) != 2:
            raise UserError(f"task.problem=binary: expected two labels, found {len(names)}: {', '.join(names[:8])}")
        problem = "binary" if len(names) == 2 else "multiclass"
    if len(names) < (1 if problem == "multilabel" else 2):
        raise UserError(
            f"task.label={column}: expected at least two different labels, found "
            f"{', '.join(names) or 'none'}; name them in task.labels"
        )
    counts: Counter[str] = Counter()
    for name, count in found.items():
        counts[_by_id(spellings.get(name, name), tuple(names), numbered)] += count
    _warn_of_variants(found if source == "the training rows" else {})
    if spellings:
        shown = ", ".join(f"{ours!r} is {theirs!r}" for ours, theirs in list(spellings.items())[:_SHOWN])
        log.info("task.label=%s: the checkpoint's labels, spelled otherwise in the rows: %s", column, shown)
    return LabelSet(problem, tuple(names), why, source, dict(counts), numbered, spellings)


def labels_of_checkpoint(hf_config: Mapping[str, Any], problem: str) -> LabelSet:
    """The labels of a trained model, from its config.json."""
    names = hf_label_names(hf_config, placeholders=True) or ("LABEL_0", "LABEL_1")
    if problem == "auto":
        if hf_config.get("problem_type") == "multi_label_classification":
            problem = "multilabel"
        elif len(names) == 1:
            problem = "regression"
        else:
            problem = "binary" if len(names) == 2 else "multiclass"
    return LabelSet(problem, names, source="the checkpoint", numbered=hf_config.get("label_ids") is not False)


def _count(
    values: Sequence[Any], problem: str, separator: str | None, names: Sequence[str] | None = None
) -> dict[str, int]:
    """Rows of each distinct label, numbers by value and words by spelling; cells that cannot be read are left out."""
    counts: Counter[str] = Counter()
    if problem == "multilabel" and (length := multi_hot_length(values)) is not None:
        hot = [v for v in values if isinstance(v, list | tuple) and len(v) == length and zeros_and_ones(v)]
        rows = np.asarray(hot, np.float64)
        named = names if names is not None and len(names) == length else map(str, range(length))
        return dict(zip(named, rows.sum(0).astype(int).tolist(), strict=True))
    numeric, lists = all_numbers(values), holds_lists(values, separator)
    for value in values:
        try:
            if problem == "multilabel":
                counts.update(split_labels(value, separator, lists=lists))
            elif not is_missing(value) and (not numeric or number(value) is not None):
                counts[label_name(value, numeric=numeric)] += 1
        except (TypeError, ValueError):
            continue  # the encoder refuses it, with its place
    whole = any(map(is_integer, counts))
    names = [name for name in counts if len(name) <= LONGEST_NAME and not (whole and resembles_number(name))]
    return {name: counts[name] for name in sorted(names, key=_order)}


def _order(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if is_integer(name) else (1, 0, name)


def _match(name: str, known: Sequence[str]) -> str | None:
    """The checkpoint's label that a row's means: the same, one of other case or spacing, or the one with this id."""
    if name in known:
        return name
    alike = [other for other in known if _fold(other) == _fold(name)]
    if len(alike) == 1:
        return alike[0]
    return name if _by_id(name, known, True) != name else None


def _by_id(name: str, names: Sequence[str], numbered: bool) -> str:
    """The label with the id that `name` is, where the labels are words."""
    if not numbered or name in names or not is_integer(name) or any(map(is_integer, names)):
        return name
    return names[int(name)] if 0 <= int(name) < len(names) else name


def _fold(name: str) -> str:
    return " ".join(name.split()).casefold()


def say_renamed(known: tuple[str, ...], found: tuple[str, ...]) -> None:
    """Warns of a checkpoint's labels that are not those of the training rows."""
    if len(known) == len(found):
        pairs = ", ".join(f"{old} -> {new}" for old, new in list(zip(known, found, strict=True))[:_SHOWN])
        log.warning(
            "the checkpoint's labels are not those of the training rows; its head is kept, and its outputs stand for: "
            "%s. model.new_head=true trains a new head, task.labels sets another order", pairs
        )  # fmt: skip
    else:
        log.warning(
            "the checkpoint's labels (%s) are not those of the training rows (%s)",
            ", ".join(known[:_SHOWN]), ", ".join(found[:_SHOWN]),
        )  # fmt: skip


def _warn_of_variants(counts: Mapping[str, int]) -> None:
    """Warns of labels that differ only by case or spaces, or are one number."""
    alike: dict[str | float, list[str]] = {}
    for name in counts:
        value = number(name)
        alike.setdefault(_fold(name) if value is None else value, []).append(name)
    for names in alike.values():
        if len(names) > 1:
            most = max(names, key=lambda name: counts[name])
            merged = ", ".join(f"{name!r}: {most!r}" for name in names if name != most)
            shown = ", ".join(f"{name!r} ({counts[name]:,} rows)" for name in names)
            log.warning("labels differ only by case, spaces or form: %s; merge them with data.clean.labels: {%s}",
                        shown, merged)  # fmt: skip


def count_rows(encoder: LabelEncoder, table: Table, num_labels: int) -> tuple[np.ndarray, int]:
    """Returns the rows of each label, int64 [num_labels], and of all; rows whose label cannot be read are left out."""
    counts, total = np.zeros(num_labels, np.int64), 0
    for row in range(len(table)):
        try:
            found = encoder.encode(table, row)
        except UserError:
            continue  # `Task.examples` says so
        counts += found.astype(np.int64) if found.ndim else np.arange(num_labels) == found
        total += 1
    return counts, total


class LabelEncoder:
    """Label cells -> arrays. Errors name file, row and label."""

    def __init__(self, labels: LabelSet, column: str, separator: str | None) -> None:
        self._labels, self._column, self._separator = labels, column, separator
        self._ids = {name: i for i, name in enumerate(labels.names)}
        self._spelled = {_fold(name): i for name, i in self._ids.items()} if labels.source == "the checkpoint" else {}
        if len(self._spelled) < len(self._ids):
            self._spelled = {}
        self._numeric = any(map(is_integer, labels.names))
        self._read: Table | None = None
        self._lists = False

    def encode(self, table: Table, row: int) -> np.ndarray:
        """Returns int32 [] (a class), float32 [C] (multi-label) or float32 [] (regression).

        Raises:
          UserError: a label outside the label set, an absent label, a target that is no finite number.
        """
        value, problem = table.rows[row][self._column], self._labels.problem
        if isinstance(value, dict):
            raise self._error(table, row, "expected a label, found an object")
        if problem == "regression":
            return self._target(value, table, row)
        if problem == "multilabel":
            return self._several(value, table, row)
        if is_missing(value):
            raise self._error(table, row, "expected a label, found none")
        try:
            return np.asarray(self._id(label_name(value), table, row), np.int32)
        except TypeError as error:
            raise self._error(table, row, str(error)) from None

    def _several(self, value: Any, table: Table, row: int) -> np.ndarray:
        target = np.zeros(len(self._ids), np.float32)
        if isinstance(value, str) and self._separator is not None and not value.strip():
            return target
        if is_missing(value):
            raise self._error(table, row, "expected the labels, found none (no label at all is [])")
        if isinstance(value, list | tuple) and len(value) > 1 and zeros_and_ones(value):
            if len(value) != len(target):
                raise self._error(table, row, f"expected {len(target)} numbers, one for each label")
            return np.asarray(value, np.float32)
        if self._labels.source == "task.labels" and isinstance(value, list | tuple):
            value = [str(entry) if type(entry) is int else entry for entry in value]
        try:
            names = split_labels(value, self._separator, lists=self._holds_lists(table))
        except (TypeError, ValueError) as error:
            raise self._error(table, row, str(error)) from None
        for name in names:
            target[self._id(name, table, row)] = 1.0
        return target

    def _holds_lists(self, table: Table) -> bool:
        if self._read is not table:
            self._read = table
            self._lists = holds_lists((row[self._column] for row in table.rows), self._separator)
        return self._lists

    def _target(self, value: Any, table: Table, row: int) -> np.ndarray:
        found = number(value)
        with np.errstate(over="ignore"):
            target = np.asarray(np.nan if found is None else found, np.float32)
        if not np.isfinite(target):
            raise self._error(table, row, "expected a finite number (of float32) as regression target")
        return target

    def _id(self, name: str, table: Table, row: int) -> int:
        labels = self._labels
        for spelling in (name, label_name(name, numeric=True) if self._numeric else name):
            if spelling in self._ids:
                return self._ids[spelling]
        if _fold(name) in self._spelled:
            return self._spelled[_fold(name)]
        by_id = _by_id(name, labels.names, labels.numbered)
        if by_id in self._ids:
            return self._ids[by_id]
        if len(name) > LONGEST_NAME:
            raise self._error(table, row, f"expected a name of at most {LONGEST_NAME} characters, found {len(name):,}")
        names = f"{', '.join(labels.names[:8])}{', ...' if len(labels.names) > 8 else ''}"
        hint = did_you_mean(name, labels.names)
        if labels.source == "the training rows":
            hint += "; task.labels names labels that no training row has"
        raise self._error(table, row, f"is not one of the {len(labels.names)} labels ({names}){hint}", "")

    def _error(self, table: Table, row: int, problem: str, between: str = ":") -> UserError:
        value = repr(table.rows[row][self._column])
        shown = value if len(value) <= 60 else value[:60] + "..."
        return UserError(f"{table.where(row)}: {self._column}={shown}{between} {problem}")
