"""A long text is read in windows; their outputs are made one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

WindowPooling = Literal["mean", "max", "first"]


def pool_windows(outputs: np.ndarray, weights: Sequence[float], pooling: WindowPooling) -> np.ndarray:
    """Returns one output for a text, float32 [C].

    Args:
      outputs: float32 [W, C]: of its W windows, in their order.
      weights: the share of each in the mean; equal for the windows of one text.
      pooling: `mean`; `max`, of each of the C outputs by itself; or `first`, the first window alone.
    """
    if pooling == "first":
        return outputs[0]
    if pooling == "max":
        return outputs.max(axis=0)
    total, weight = np.zeros(outputs.shape[1]), 0.0
    for window, share in zip(outputs, np.asarray(weights, np.float32).tolist(), strict=True):
        total += window.astype(np.float64) * share
        weight += share
    return (total / weight).astype(np.float32)
