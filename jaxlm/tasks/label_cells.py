"""What a label cell of a table holds: nothing, a class, several classes, or a number."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

LONGEST_NAME = 500
"""Characters of a label; longer ones are texts in the wrong column."""
_NUMBER = re.compile(r"[+-]?(\d{1,40}\.?\d{0,40}|\.\d{1,40})([eE][+-]?\d{1,4})?", re.ASCII)
_WHOLE = re.compile(r"([+-]?\d{1,18})\.0*", re.ASCII)
_INTEGER = re.compile(r"-?\d{1,18}", re.ASCII)
_DAMAGED = re.compile(r"[+-]{2,}[\d.,]+")
_ABSENT = ("nan", "na", "n/a", "null", "none")
"""How programs write a missing value among numbers."""
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)


def is_missing(value: Any) -> bool:
    """Whether a cell holds no label: null, NaN or blank."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or isinstance(value, float | Decimal | np.floating) and value != value


def is_integer(name: str) -> bool:
    """Whether a label is the decimal digits of a whole number."""
    return _INTEGER.fullmatch(name) is not None


def number(value: Any) -> float | None:
    """The number in a cell, or None: booleans and words are none, nor are the words nan and inf."""
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, int | float | Decimal | np.number):
        return _float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        return _float(value)
    return None


def _float(value: Any) -> float | None:
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def label_name(value: Any, *, numeric: bool = False) -> str:
    """A label as a name: booleans are 0 and 1, and whole numbers lose their decimal point.

    Args:
      numeric: all labels are numbers; then "1." and "1.0" are the string of a whole number, too.
    Raises:
      TypeError: the value is no string, number or boolean.
    """
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value.strip()) if numeric else None
        return whole[1] if whole else value
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if isinstance(value, int | float | Decimal | np.number):
        return str(int(value)) if isinstance(value, float | Decimal | np.floating) and _is_whole(value) else str(value)
    raise TypeError(f"expected a string or a number, found {kind_of(value)}")


def _is_whole(value: Any) -> bool:
    return math.isfinite(value) and value == int(value)


def kind_of(value: Any) -> str:
    """What a value is, in JSON's words."""
    names: dict[Any, str] = {dict: "an object", list: "a list", tuple: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    return names.get(type(value)) or ("a number" if number(value) is not None else f"a {type(value).__name__}")


def resembles_number(name: str) -> bool:
    """Whether a label is a number that lost its form: two signs, or digits other than 0 to 9 (superscript, circled)."""
    bare = name.strip().lstrip("+-")
    return bool(_DAMAGED.fullmatch(name.strip())) or bare.isnumeric() and not bare.isascii()


def all_numbers(values: Sequence[Any]) -> bool:
    """Whether every label is a number, cells without one left aside."""
    present = [value for value in values if not _absent_number(value)]
    return bool(present) and all(number(value) is not None for value in present)


def _absent_number(value: Any) -> bool:
    """Whether a cell has no finite number, though its column may hold numbers."""
    if isinstance(value, str):
        bare = value.strip()
        return not bare or bare.lower() in _ABSENT or bool(_INFINITE.fullmatch(bare) or _too_large(bare))
    return is_missing(value) or isinstance(value, int | float | Decimal | np.number) and number(value) is None


def _too_large(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and number(text) is None


def multi_hot_length(values: Sequence[Any]) -> int | None:
    """The length, at least two, of the lists of the numbers 0 and 1 that most labels are; None: most are not.

    The others are then bad rows.
    """
    present = [value for value in values if not is_missing(value)]
    lengths = Counter(len(value) for value in present if isinstance(value, list | tuple) and zeros_and_ones(value))
    length, rows = lengths.most_common(1)[0] if lengths else (0, 0)
    return length if length > 1 and 2 * rows > len(present) else None


def holds_lists(values: Iterable[Any], separator: str | None) -> bool:
    """Whether labels stand in lists, so that a string among them is none: no label, and no list of one."""
    return separator is None and any(isinstance(value, list | tuple) for value in values)


def zeros_and_ones(entries: Sequence[Any]) -> bool:
    return all(isinstance(entry, bool | int | float | np.number) and entry in (0, 1) for entry in entries)


def split_labels(value: Any, separator: str | None, *, lists: bool = False) -> list[str]:
    """The labels of a multi-label cell: a list as it is, a string at the separator, whose end may have one, too.

    Args:
      lists: other cells of the column are lists.
    Raises:
      TypeError: a list with an entry that is no string, an object, a number; a string beside lists.
      ValueError: an empty name, or one that stands twice.
    """
    if isinstance(value, list | tuple):
        for entry in value:
            if not isinstance(entry, str):
                raise TypeError(f"expected a list of strings, found {kind_of(entry)} in it")
        names = [str(entry) for entry in value]
    elif isinstance(value, str) and lists:
        raise TypeError("expected a list of labels, as in other rows, found a string")
    elif isinstance(value, str):
        names = [part.strip() for part in value.split(separator)] if separator else [value]
        if not names[-1].strip():
            names.pop()
    else:
        raise TypeError(f"expected a list of labels, found {kind_of(value)}")
    if any(not name.strip() for name in names):
        raise ValueError("expected a name, found an empty one between separators" if separator else "an empty name")
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"label {repeated!r} stands twice")
    return names


def infer_problem(values: Sequence[Any], separator: str | None) -> tuple[str, str]:
    """Tells the problem that training labels pose; returns it, and why.

    A separator, or lists in half of the rows: multi-label. Fractional numbers: regression, if more than an odd one is
    fractional and less than an odd one is no number. Two values: binary; else multi-class.
    """
    if separator is not None:
        return "multilabel", "task.label_separator is set"
    lists = sum(isinstance(value, list | tuple) for value in values)
    if 2 * lists >= max(1, sum(not is_missing(value) for value in values)):
        if multi_hot_length(values) is not None:
            return "multilabel", "the labels are multi-hot: lists of 0 and 1 of one length"
        return "multilabel", "the labels are lists"
    present = [value for value in values if not _absent_number(value)]
    numbers = [found for value in present if (found := number(value)) is not None]
    fractional = sum(found != round(found) for found in numbers)
    share = f"{fractional:,} of {len(present):,} labels are fractional numbers"
    if len(numbers) >= 0.9 * len(present) and (
        fractional and 2 * fractional >= len(present) or fractional > 1 and fractional >= 0.1 * len(present)
    ):
        return "regression", share
    if present and len(numbers) == len(present):
        distinct = len({label_name(value, numeric=True) for value in present})
        why = f"{distinct} different whole numbers"
        if fractional:
            why = f"{distinct} different numbers, though {share} (task.problem=regression reads them as targets)"
    else:
        distinct = len({str(value) for value in values if not is_missing(value) and not isinstance(value, list | dict)})
        why = f"{distinct} different labels"
    return ("binary" if distinct == 2 else "multiclass"), why
