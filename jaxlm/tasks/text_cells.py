"""Cells of tasks that write: the text that is read, and the texts that answer it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from jaxlm.data.sources.table import Table

_SAMPLE = 1000


def read_text(cell: Any) -> str:
    """Returns the text of a cell; of a list of sentences, all of them with spaces between.

    Raises:
      ValueError: it holds no text, or an empty one, or a list of numbers, such as ids of tokens.
    """
    _refuse_numbers(cell)
    parts = [_one(part) for part in cell] if isinstance(cell, list | tuple) else [_one(cell)]
    text = " ".join(part for part in parts if part.strip())
    if not text.strip():
        raise ValueError("is empty; expected a text")
    return text


def read_beside(cell: Any) -> str:
    """Returns the text of a cell that stands beside another; a blank one is "".

    Raises:
      ValueError: as `read_text`.
    """
    return "" if isinstance(cell, str) and not cell.strip() else read_text(cell)


def read_references(cell: Any) -> list[str]:
    """Returns the texts of a cell, at least one: a text, a list of texts, or SQuAD's {"text": [...]}. Empty ones of
    several do not count.

    Raises:
      ValueError: it holds no text, or empty ones alone, or a list of numbers.
    """
    _refuse_numbers(cell)
    if isinstance(cell, Mapping):
        if "text" not in cell:
            raise ValueError('expected a text, a list of texts or {"text": [...]}, found an object without "text"')
        cell = cell["text"]
    texts = [_one(part) for part in (cell if isinstance(cell, list | tuple) else [cell])]
    found = [text for text in texts if text.strip()]
    if not found:
        raise ValueError("is empty; expected a text")
    return found


def sample_references(tables: Mapping[str, Table], column: str) -> list[str]:
    """Returns references of some training (else other) rows, to tell their language; bad cells have none."""
    table = tables.get("train", next(iter(tables.values()), None))
    found: list[str] = []
    for row in () if table is None else table.rows[:: max(1, len(table.rows) // _SAMPLE)]:
        with contextlib.suppress(ValueError):
            found += read_references(row.get(column))
    return found


def _refuse_numbers(cell: Any) -> None:
    if isinstance(cell, list | tuple) and any(isinstance(part, int | float) for part in cell):
        raise ValueError("expected a text or a list of texts, found a list of numbers")


def _one(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:
        raise ValueError("is missing; expected a text")
    if isinstance(value, bool):
        raise ValueError('expected a text, found a boolean: write it as a text, such as "true"')
    if isinstance(value, int | float | Decimal) and math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping) and isinstance(value.get("text"), str):
        return value["text"]
    found = {dict: "an object", list: "a list", tuple: "a list"}.get(type(value), type(value).__name__)
    raise ValueError(f"expected a text, found {found}")
