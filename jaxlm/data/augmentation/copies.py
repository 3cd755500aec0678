"""Puts edited copies of the training rows behind them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxlm.data.augmentation.config import AugmentConfig
from jaxlm.data.augmentation.editor import Editor
from jaxlm.data.augmentation.edits import RandomEditor
from jaxlm.data.augmentation.synonyms import read_synonyms
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.sources.table import Table, join
from jaxlm.errors import UserError

log = logging.getLogger("jaxlm")

Row = dict[str, Any]
EditRow = Callable[[Row, Editor], Row | None]
"""Makes an edited copy of a row, with what it is labelled with moved to its new place; None: it makes none."""

_CUTOFF = 1
"""Ends the seed of the draws of tokens, so that they differ from those of words."""


def add_copies(table: Table, config: AugmentConfig, seed: int, edit_row: EditRow) -> Table:
    """Returns the rows, and behind them their edited copies, which carry the places of their rows.

    What a copy becomes depends on (seed, number of the copy, number of the row) alone. A copy that came out as its row
    is left out, unless tokens are cut off later.

    Raises:
      UserError: an unreadable table of synonyms; no copy differs from its row.
    """
    synonyms = {} if config.synonyms is None else read_synonyms(config.synonyms)
    rows: list[Row] = []
    sources: list[int] = []
    for copy in range(config.copies):
        for i, row in enumerate(table.rows):
            edited = edit_row(row, RandomEditor(config, np.random.default_rng([seed, copy, table.number(i)]), synonyms))
            if edited is not None and (edited != row or config.cutoff):
                rows.append(edited)
                sources.append(i)
    if not rows:
        raise UserError(
            f"data.augment: no copy of the {len(table)} rows of {table.name} came out otherwise than its row; raise "
            "the shares, or leave data.augment out (words that carry a label, and whole rows of them, are not edited)"
        )
    log.info("data.augment: %d rows and %d changed copies of them: %.0f%% of the training rows",
             len(table), len(rows), 100 * len(rows) / max(1, len(table) + len(rows)))  # fmt: skip
    copies = replace(table.select(sources), rows=tuple(rows), skipped=0)
    return join((table, copies), table.name)


def edit_texts(row: Row, columns: Sequence[str], editor: Editor) -> Row:
    """Returns a row whose texts, and texts in lists, are edited in some columns; other cells stay."""

    def edited(cell: Any) -> Any:
        if isinstance(cell, str):
            return editor.edit(cell)
        return [edited(part) for part in cell] if isinstance(cell, list) else cell

    return {**row, **{column: edited(row[column]) for column in columns if column in row}}


def cut_tokens(
    examples: Examples, originals: int, share: float, seed: int, *, mask_id: int, special: Collection[int]
) -> list[Example]:
    """Returns examples in which tokens of the copies are masked: Shen et al., "A Simple but Tough-to-Beat Data
    Augmentation Approach for Natural Language Understanding and Generation" (2020, arXiv:2009.13818), token cut-off.

    Which ones depends on the seed and the copy's place in the table alone.

    Args:
      originals: how many rows of the table are no copies.
      share: of the tokens.
      mask_id: what stands in their place.
      special: ids of tokens that stay.
    """
    stays = np.asarray(sorted(special), np.int32)
    made: list[Example] = []
    windows: Counter[int] = Counter()  # of each row so far
    for example in examples.examples:
        if example.row >= originals:
            draw = np.random.default_rng([seed, example.row, windows[example.row], _CUTOFF])
            windows[example.row] += 1
            cut = (draw.random(len(example.tokens)) < share) & ~np.isin(example.tokens, stays)
            tokens = np.where(cut, np.int32(mask_id), example.tokens)
            example = replace(example, arrays={**example.arrays, "tokens": tokens})
        made.append(example)
    return made
