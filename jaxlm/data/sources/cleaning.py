"""Text preprocessing: `data.clean` of the config, each action counted and logged."""

from __future__ import annotations

import logging
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from jaxlm.data.config import CleanConfig
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")

# Format characters that stay. The joiners U+200C and U+200D are spelling, in Persian and the Indic scripts, and hold
# emoji together: without them the words are other words. The rest are visible signs of Arabic, Syriac and Kaithi.
_KEPT_FORMATS = "\u200c\u200d\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
_LINE_END = re.compile("\r\n?")

Action = tuple[str, Callable[[str], str]]


def clean_text(text: str, clean: CleanConfig) -> str:
    """Applies the text actions of `clean`, in the order control characters, Unicode form, white space.

    Cleaning twice gives what cleaning once gives.

    - `control_characters` removes the categories Cc (but tab and line feed) and Cf (soft hyphen, zero-width space,
      byte-order marks, direction marks), but for zero-width joiner and non-joiner and a few visible signs. Of Cc, those
      that part words or lines (carriage return, form feed, ...) become a line feed, so that no two words run together.
    - `unicode` is a normal form of https://www.unicode.org/reports/tr15/.
    - `whitespace` folds each run of white space, line feeds included, into one space, and strips the ends.
    """
    for _, action in _text_actions(clean):
        text = action(text)
    return text


class DocumentCleaner:
    """Applies the text actions of `clean` to documents that come in pieces.

    The cleaned pieces of a document, one behind the other, are what cleaning it as a whole gives, where it is cut at
    line ends or before spaces.
    """

    def __init__(self, clean: CleanConfig) -> None:
        self._actions = _text_actions(clean)
        self._fold = clean.whitespace
        self._begun = self._gap = False  # of the document at hand: text has come, and then a space
        self._counts: Counter[str] = Counter()
        self.take_counts()

    def take_counts(self) -> Counter[str]:
        """Returns how many pieces each action changed since the last call: `whitespace_changed` and the like."""
        counts, self._counts = self._counts, Counter({f"{name}_changed": 0 for name, _ in self._actions})
        return counts

    def piece(self, text: str, *, starts: bool) -> str:
        """Cleans the next piece; `starts`: it is the first of its document."""
        before = text
        for name, action in self._actions:
            before, text = text, action(text)
            self._counts[f"{name}_changed"] += before != text
        if not self._fold:
            return text
        if starts:
            self._begun = self._gap = False
        gap = self._begun and (self._gap or before[:1].isspace())
        if not text:
            self._gap |= bool(before)
            return text
        self._begun, self._gap = True, before[-1:].isspace()
        return f" {text}" if gap else text


def clean_tables(
    tables: dict[str, Table], text_columns: tuple[str, ...], clean: CleanConfig
) -> tuple[dict[str, Table], dict[str, int]]:
    """Cleans the text columns of every split, then drops duplicates and leaks from the training rows.

    Two rows are the same where all their text columns are, after cleaning; labels are not looked at.

    Args:
      tables: by split name; duplicates and leaks concern "train" against "validation" and "test".
      text_columns: what `clean` is applied to; values that are not strings are left alone.
      clean: the actions.
    Returns:
      The tables, and a count for each action asked for: `control_characters_changed`, `unicode_changed`,
      `whitespace_changed` (texts), `duplicates_dropped`, `leaks_validation`, `leaks_test`, `leaks_dropped` (rows).
    Raises:
      UserError: no training row is left.
    """
    counts: dict[str, int] = {}
    for name, action in _text_actions(clean):
        changed = 0
        for split, table in tables.items():
            tables = {**tables, split: (mapped := _map_texts(table, text_columns, action))}
            changed += sum(
                new[column] != old[column]
                for new, old in zip(mapped.rows, table.rows, strict=True)
                for column in text_columns
                if isinstance(old.get(column), str)
            )
        counts[f"{name}_changed"] = changed
        log.info("clean.%s: %d texts changed", name, changed)
    if "train" in tables:
        train = tables["train"]
        if clean.deduplicate:
            train = _deduplicate(train, text_columns, counts)
        if clean.leaks != "ignore":
            train = _check_leaks(train, tables, text_columns, clean.leaks, counts)
        tables = {**tables, "train": train}
    return tables, counts


def replace_labels(
    tables: dict[str, Table], columns: tuple[str, ...], labels: Mapping[str, str], separator: str | None = None
) -> tuple[dict[str, Table], int]:
    """Replaces labels, those in lists, too, where labels that become the same stand once; returns the tables, and how
    many were replaced.

    Args:
      labels: as a row has it -> as it is meant; one that no row has is warned about.
      separator: what stands between several labels of a cell.
    """
    found: Counter[str] = Counter()

    def one(value: Any) -> Any:
        name = str(value) if type(value) is int else value
        if isinstance(name, str) and name in labels:
            found[name] += 1
            return labels[name]
        return value

    def several(values: Sequence[Any]) -> list[Any]:
        new = [one(value) for value in values]
        return new if new == values else [value for i, value in enumerate(new) if value not in new[:i]]

    def replaced(cell: Any) -> Any:
        if isinstance(cell, list):
            return several(cell)
        if isinstance(cell, str) and separator is not None:
            names = [name.strip() for name in cell.split(separator)]
            return cell if (new := several(names)) == names else separator.join(new)
        return one(cell)

    cleaned = {
        split: table.replace_rows(
            tuple({**row, **{c: replaced(row[c]) for c in columns if c in row}} for row in table.rows)
        )
        for split, table in tables.items()
    }
    log.info("clean.labels: %d labels changed", found.total())
    for name in labels:
        if name not in found:
            log.warning("clean.labels: no row has the label %r", name)
    return cleaned, found.total()


def _text_actions(clean: CleanConfig) -> list[Action]:
    actions: list[Action] = []
    if clean.control_characters:
        actions.append(("control_characters", _strip_controls))
    if clean.unicode != "none":
        form = clean.unicode
        actions.append(("unicode", lambda text: unicodedata.normalize(form, text)))
    if clean.whitespace:
        actions.append(("whitespace", lambda text: " ".join(text.split())))
    return actions


def _strip_controls(text: str) -> str:
    return _LINE_END.sub("\n", text).translate(_control_table())


@cache
def _control_table() -> dict[int, str | None]:
    table: dict[int, str | None] = {}
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        category = unicodedata.category(char)
        if category == "Cc" and char not in "\t\n":
            table[code] = "\n" if char.isspace() else None
        elif category == "Cf" and char not in _KEPT_FORMATS:
            table[code] = None
    return table


def _map_texts(table: Table, columns: tuple[str, ...], action: Callable[[str], str]) -> Table:
    def mapped(row: dict) -> dict:
        return row | {column: action(row[column]) for column in columns if isinstance(row.get(column), str)}

    return table.replace_rows(tuple(mapped(row) for row in table.rows))


def _keys(table: Table, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Returns the key of each row: rows with equal keys are the same."""
    values = (tuple(row.get(column) for column in columns) for row in table.rows)
    return [tuple(value if isinstance(value, str) else repr(value) for value in row) for row in values]


def _deduplicate(train: Table, columns: tuple[str, ...], counts: dict[str, int]) -> Table:
    first: dict[tuple[str, ...], int] = {}
    for i, key in enumerate(_keys(train, columns)):
        first.setdefault(key, i)
    counts["duplicates_dropped"] = dropped = len(train) - len(first)
    log.info("clean.deduplicate: %d of %d training rows repeat an earlier one and were dropped", dropped, len(train))
    return train.select(first.values()) if dropped else train


def _check_leaks(
    train: Table, tables: dict[str, Table], columns: tuple[str, ...], leaks: str, counts: dict[str, int]
) -> Table:
    keys = _keys(train, columns)
    leaked: set[int] = set()
    for split in ("validation", "test"):
        if split not in tables:
            continue
        held_out = set(_keys(tables[split], columns))
        shared = [i for i, key in enumerate(keys) if key in held_out]
        counts[f"leaks_{split}"] = len(shared)
        leaked.update(shared)
        if set(keys) == held_out:
            log.warning(
                "train (%s) and %s (%s) hold the same texts: a score on %s says nothing about unseen text; "
                "give data.%s rows of its own", train.name, split, tables[split].name, split, split
            )  # fmt: skip
        elif shared:
            log.warning(
                "clean.leaks: the texts of %d of %d training rows also stand in %s, the first: %s; %s",
                len(shared), len(train), split, train.where(shared[0]),
                "they are dropped" if leaks == "drop" else "data.clean.leaks=drop drops them",
            )  # fmt: skip
    if leaks != "drop":
        return train
    counts["leaks_dropped"] = len(leaked)
    log.info("clean.leaks: %d of %d training rows dropped", len(leaked), len(train))
    if len(leaked) == len(train):
        raise UserError(
            f"{train.name}: every training row also stands in validation or test, so that data.clean.leaks=drop leaves "
            "none; give data.train and data.validation different rows"
        )
    return train.select(i for i in range(len(train)) if i not in leaked)
