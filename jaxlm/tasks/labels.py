"""Labels of classification rows: which problem they pose, their names, and their ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError, did_you_mean


def split_labels(value: Any, separator: str | None) -> list[str]:
    """The labels of a multi-label cell: a list as it is, a string at the separator; empty: none."""
    if isinstance(value, (list, tuple)):
        return [str(v) for v in value]
    if value is None or value == "":
        return []
    return [part.strip() for part in str(value).split(separator)] if separator else [str(value)]


def label_name(value: Any) -> str:
    """A label as a name; booleans are 0 and 1."""
    return str(int(value)) if isinstance(value, (bool, np.bool_)) else str(value)


def infer_problem(values: Sequence[Any], separator: str | None) -> str:
    """Lists or a separator: multi-label; fractional numbers: regression; two values: binary; else multi-class."""
    if separator is not None or any(isinstance(v, (list, tuple)) for v in values):
        return "multilabel"
    if any(_fractional(v) for v in values):
        return "regression"
    return "binary" if len({str(v) for v in values}) == 2 else "multiclass"


def _fractional(value: Any) -> bool:
    if isinstance(value, float):
        return True
    if not isinstance(value, str) or not any(mark in value.lower() for mark in (".", "nan")):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def distinct_labels(values: Sequence[Any], problem: str, separator: str | None) -> tuple[str, ...]:
    """Distinct labels, numbers by value and words by spelling."""
    if problem == "multilabel":
        names = {label for v in values for label in split_labels(v, separator)}
    else:
        names = {label_name(v) for v in values if v is not None and v != ""}
    return tuple(sorted(names, key=lambda n: (0, int(n), n) if n.lstrip("-").isdigit() else (1, 0, n)))


class LabelEncoder:
    """Label cells -> arrays. Errors name file, row and label."""

    def __init__(self, problem: str, names: Sequence[str], column: str, separator: str | None) -> None:
        self.problem, self.names, self._column, self._separator = problem, tuple(names), column, separator
        self._ids = {name: i for i, name in enumerate(names)}
        # Integer labels beside a checkpoint's words ("NEGATIVE", "POSITIVE") are ids.
        self._as_ids = not any(name.lstrip("-").isdigit() for name in names)

    def encode(self, table: Table, row: int) -> np.ndarray:
        """Returns int32 [] (a class), float32 [C] (multi-label) or float32 [] (regression).

        Raises:
          UserError: a label outside the label set, an absent label, a target that is no finite number.
        """
        value = table.rows[row][self._column]
        if self.problem == "regression":
            return self._target(value, table, row)
        if self.problem == "multilabel":
            target = np.zeros(len(self.names), np.float32)
            for label in split_labels(value, self._separator):
                target[self._id(label, table, row)] = 1.0
            return target
        return np.asarray(self._id(value, table, row), np.int32)

    def _target(self, value: Any, table: Table, row: int) -> np.ndarray:
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(
                f"{table.where(row)}: {self._column}={value!r}: expected a finite number as regression target"
            )
        return np.asarray(number, np.float32)

    def _id(self, value: Any, table: Table, row: int) -> int:
        name = label_name(value)
        if name in self._ids:
            return self._ids[name]
        if self._as_ids and name.isdigit() and int(name) < len(self.names):
            return int(name)
        raise UserError(
            f"{table.where(row)}: {self._column}={value!r} is not one of the {len(self.names)} labels "
            f"({', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''})"
            f"{did_you_mean(name, self.names)}"
        )


def hf_label_names(hf_config: Mapping[str, Any], *, placeholders: bool = False) -> tuple[str, ...] | None:
    """The label names of a config.json in id order; None where it has none.

    Args:
      placeholders: return LABEL_0, LABEL_1, ..., which Transformers writes where nobody named the labels, too.
    """
    id2label = hf_config.get("id2label")
    if not id2label:
        return None
    names = tuple(name for _, name in sorted((int(i), str(name)) for i, name in id2label.items()))
    return None if not placeholders and names == tuple(f"LABEL_{i}" for i in range(len(names))) else names
