"""`Example`: one model input made of a labelled row; `Examples`: those of a whole split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxlm.data.sources.table import Table


@dataclass(frozen=True)
class Example:
    """One model input: a row of the table, a window of it, or one of its texts (a choice, the chosen answer).

    Attributes:
      arrays: by name: `<stream>tokens` int32 [T] of each stream, special tokens included, and the task's fields.
      row: index of its row in the table; the windows of one row share it.
      weight: its share of the row: 1, or 1 / windows.
      group: examples of one group are in the same batch, though maybe in different micro-batches, and count as one in
        `train.batch_size`; -1: by itself. Where there are groups, the loss sees a whole batch at once.
      prompt: int32 token ids that a generative evaluation continues.
      host: what `Task.decode` needs and no device sees: character offsets, first tokens of words.
    """

    arrays: Mapping[str, np.ndarray]
    row: int
    weight: float = 1.0
    group: int = -1
    prompt: np.ndarray | None = None
    host: Any = None

    @property
    def tokens(self) -> np.ndarray:
        """int32 [T]: those of the first stream."""
        return self.arrays["tokens"]


@dataclass(frozen=True)
class Examples:
    """A split of labelled rows, ready to be packed.

    Attributes:
      table: the rows.
      examples: those of row 0 first, and so on; a skipped row has none.
      labels: gold label of each row of the table, in the form that `Task.scores` compares; None where there is none.
      counts: for summary.json: `truncated`, `skipped`.
      errors: what is wrong with each skipped row.
      classes: int [rows of the table], the class by which `data.sampling` draws, -1 for a skipped row; None: rows have
        no one class.
    """

    table: Table
    examples: Sequence[Example]
    labels: Sequence[Any]
    counts: Mapping[str, int]
    errors: Mapping[int, str] = field(default_factory=dict[int, str])
    classes: np.ndarray | None = None

    @property
    def grouped(self) -> bool:
        """Whether the loss compares examples with each other."""
        return any(example.group >= 0 for example in self.examples)
