"""Rows of tasks that write become examples: for an encoder and a decoder, or for a decoder alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from jaxlm.data.examples.bad_rows import BadRows
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks.records import Context
from jaxlm.tasks.text_cells import read_beside, read_references, read_text
from jaxlm.tasks.text_layout import TextLayout
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")
_T = TypeVar("_T")


@dataclass(frozen=True)
class TextRows:
    """Makes examples of a table.

    Attributes:
      target: column of the references.
      key_of: the config key that names a column.
    """

    layout: TextLayout
    context: Context
    target: str
    key_of: Callable[[str], str]

    def examples(self, table: Table, *, labelled: bool, key: str) -> Examples:
        """Of each usable row an example; its label is the list of its references, of which training learns the first.

        Raises:
          UserError: a missing column, or a bad row (unless `data.on_bad_row` is skip).
        """
        columns = self.layout.template.columns
        for column in (*columns, *((self.target,) if labelled else ())):
            table.require(column, key=self.key_of(column))
        bad = BadRows(table, self.context.data, labelled=labelled, key=key)
        labels: list[list[str] | None] = [None] * len(table.rows)
        read: dict[int, dict[str, str]] = {}
        for i in range(len(table.rows)):
            try:
                texts = {column: _read(self._reader(column), table, i, column) for column in columns}
                labels[i] = _read(read_references, table, i, self.target) if labelled else None
                read[i] = texts
            except UserError as error:
                bad.add(i, error)
        sources = self._ids([self.layout.template.fill(texts) for texts in read.values()])
        written = [references[0] for i in read if (references := labels[i])]
        targets = self._ids(written, self.context.tokenizer.target)
        made: list[Example] = []
        counts = {"truncated": 0, "targets_truncated": 0}
        ended: list[str] = []
        unknown = 0
        for number, (i, texts) in enumerate(read.items()):
            where = table.where(i)
            try:
                source, source_cut = self._source(sources[number], texts, where)
                target, target_cut = self._target(targets[number], where) if labelled else (None, False)
            except UserError as error:
                bad.add(i, error)
                continue
            made.append(self._example(source, target, i))
            if target is not None and self.layout.end_id in targets[number]:
                ended.append(where)
            unknown += target is not None and bool((target == self.context.tokenizer.target.unk_id).any())
            counts["truncated"] += source_cut
            counts["targets_truncated"] += target_cut
        bad.say()
        if ended:
            end = self.context.tokenizer.tokens([self.layout.end_id])[0]
            log.warning(
                "%s: %d targets hold %r, with which a text ends: what stands behind it is never written; the first: %s "
                "(data.split_special_tokens=true reads it as characters)", table.name, len(ended), end, ended[0],
            )  # fmt: skip
        if unknown:
            log.warning("%s: %d of %d targets hold characters that the tokenizer does not know; the model learns to "
                        "write its unknown token there", table.name, unknown, len(made))  # fmt: skip
        for name, what in {
            "truncated": f"texts longer than data.max_length={self.layout.max_length}",
            "targets_truncated": f"targets longer than data.max_target_length={self.layout.max_target_length}",
        }.items():
            if counts[name]:
                log.info("%s: %d of %d %s: cut", table.name, counts[name], len(made), what)
        return Examples(table, made, labels, {**counts, "skipped": len(bad.errors)}, bad.errors)

    def _reader(self, column: str) -> Callable[[Any], str]:
        """Of the columns of a template that has the source, the others may be blank, as Alpaca's `input`."""
        beside = column != self.layout.source in self.layout.template.columns
        return read_beside if beside else read_text

    def _source(self, ids: np.ndarray, texts: dict[str, str], where: str) -> tuple[np.ndarray, bool]:
        """The tokens that are read, and whether the text had to be cut."""
        layout = self.layout
        before, after = layout.source_affixes
        room = layout.max_length - len(before) - len(after)
        if not len(ids):
            raise UserError(f"{where}: {', '.join(texts)} has no token of the tokenizer; expected a text")
        cut = len(ids) > room
        if cut and layout.start_id is None:
            ids = self._shortened(texts, room, where)
        return np.concatenate([before, ids[:room], after]), cut

    def _shortened(self, texts: dict[str, str], room: int, where: str) -> np.ndarray:
        """Tokens of a template whose source, or if that is not enough its longest text, loses its end, so that what
        stands behind it is kept."""
        longest = max(texts, key=lambda name: len(texts[name]))
        for column in dict.fromkeys([self.layout.source if self.layout.source in texts else longest, longest]):
            whole = texts[column]
            _, offsets = self.context.tokenizer.encode_with_offsets(whole)
            kept = len(offsets)
            while kept > 0:
                part = whole[: int(offsets[kept - 1][1])].rstrip()
                [ids] = self._ids([self.layout.template.fill({**texts, column: part})])
                if len(ids) <= room:
                    return ids
                kept -= len(ids) - room
        raise UserError(
            f"{where}: task.template alone takes up more than data.max_length={self.layout.max_length}; raise it"
        )

    def _target(self, ids: np.ndarray, where: str) -> tuple[np.ndarray, bool]:
        """The tokens that are written, and whether the text had to be cut."""
        layout = self.layout
        before, after = layout.target_affixes
        if not len(ids):
            raise UserError(f"{where}: {self.target} has no token of the tokenizer; expected a text")
        if (ids == self.context.tokenizer.target.unk_id).all():
            raise UserError(
                f"{where}: {self.target} has no character that the tokenizer knows; expected a text in its script, "
                "or another tokenizer"
            )
        start = layout.source_affixes[0].tolist() if layout.start_id is None else [layout.start_id]
        if int(ids[0]) in {*before.tolist(), *start} & set(self.context.tokenizer.special_ids):
            token = self.context.tokenizer.tokens([int(ids[0])])[0]
            raise UserError(
                f"{where}: {self.target} begins with {token!r}, which the decoder is given by itself; take it out of "
                "the text, or set data.split_special_tokens=true to read it as characters"
            )
        room = layout.max_target_length - len(before) - len(after)
        return np.concatenate([before, ids[:room], after]), len(ids) > room

    def _ids(self, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> list[np.ndarray]:
        tokenizer = tokenizer or self.context.tokenizer
        return list(self.context.token_ids(texts, tokenizer))

    def _example(self, source: np.ndarray, target: np.ndarray | None, row: int) -> Example:
        """An example without a target, to be answered, has one label of weight 0."""
        start = self.layout.start_id
        weights = np.zeros(1, np.float32) if target is None else np.ones(len(target), np.float32)
        target = np.zeros(1, np.int32) if target is None else target
        if start is not None:
            first = np.asarray([start], np.int32)
            arrays = {
                "tokens": source,
                "decoder_tokens": np.concatenate([first, target[:-1]]),
                "labels": target,
                "weights": weights,
            }
            return Example(arrays, row, prompt=first)
        silent = len(source) - 1
        arrays = {
            "tokens": np.concatenate([source, target[:-1]]),
            "labels": np.concatenate([np.zeros(silent, np.int32), target]),
            "weights": np.concatenate([np.zeros(silent, np.float32), weights]),
        }
        return Example(arrays, row, prompt=source)


def _read(read: Callable[[Any], _T], table: Table, row: int, column: str) -> _T:
    try:
        return read(table.rows[row][column])
    except ValueError as error:
        between = " " if str(error).startswith("is ") else ": "
        raise UserError(f"{table.where(row)}: {column}{between}{error}") from None
