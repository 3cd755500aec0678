"""Examples: what a task makes of labelled rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Batch = dict[str, np.ndarray]


HOST_ONLY = ("examples",)
"""Arrays of a batch that never go to the device."""


@dataclass(frozen=True)
class Example:
    """One tokenized example, or one window of a long one.

    Attributes:
        ids: int32 [T], token ids, special tokens included.
        type_ids: int32 [T], 0 for the first text of a pair, 1 for the second.
        label: int32 [] or float32 [] or float32 [C]; of one shape and dtype over a split.
        index: row in the split; the windows of one row share it.
        weight: what the example counts in the loss and the metrics.
    """

    ids: np.ndarray
    type_ids: np.ndarray
    label: np.ndarray
    index: int
    weight: float = 1.0
