"""Which of two values of a metric is the better one."""

from __future__ import annotations

import math


def rank(value: float | None, *, higher_is_better: bool) -> float:
    """Returns a number that is greatest for the best value; -inf for a value that is undefined or infinite."""
    if value is None or not math.isfinite(value):
        return -math.inf
    return value if higher_is_better else -value
