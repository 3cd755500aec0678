"""Training curves of metrics.jsonl: loss, validation metric, learning rate, gradient norm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.report.charts import Figure, Series, chart
from jaxlm.report.format import format_name, format_score


def training_curves(rows: Sequence[Mapping[str, Any]], metric: str, best_step: int | None) -> list[Figure]:
    """Draws the values that metrics.jsonl has, over the steps.

    Args:
      rows: of metrics.jsonl, null read as NaN.
      metric: the one that chose the best checkpoint.
      best_step: marked by a vertical line; None: no line.
    """
    train = [r for r in rows if r.get("kind") == "train"]
    evaluations = [r for r in rows if r.get("kind") == "evaluation" and r.get("split") == "validation"]
    mark = None if best_step is None else (float(best_step), f"best, step {best_step:,}")
    steps = (0.0, float(max((r["step"] for r in rows), default=0) or 1))

    def draw(title: str, alt: str, *series: Series, keys: tuple[tuple[str, str], ...] = ()) -> Figure:
        drawn = [s for s in series if s.y.size]
        return Figure(title, chart(drawn, alt=alt, x_label="step", y_label="", mark=mark, x_range=steps), keys)

    figures = []
    x, y = _points(train, "loss")
    x_val, y_val = _points(evaluations, "loss")
    if np.isfinite(y).any() or np.isfinite(y_val).any():
        named = (("training", y), ("validation", y_val))
        alt = ", ".join(
            f"{name} loss from {format_score(v[0])} to {format_score(v[-1])}" for name, v in named if v.size
        )
        keys = (("raw", "training"), ("line-1", "training, smoothed")) if y.size else ()
        keys += (("line-2", "validation"),) if y_val.size else ()
        series = Series(x, y, "raw"), Series(x, smooth(y), "line-1"), Series(x_val, y_val, "line-2", dots=True)
        figures.append(draw("Loss", alt, *series, keys=keys))
    x, y = _points(evaluations, metric)
    if np.isfinite(y).any() and metric != "loss":
        title = f"Validation {format_name(metric)}"
        first_to_last = f"{format_score(y[0])} to {format_score(y[-1])}"
        alt = f"{title} from {first_to_last}, between {np.nanmin(y):.4f} and {np.nanmax(y):.4f}"
        figures.append(draw(title, alt, Series(x, y, "line-2", dots=True)))
    x, y = _points(train, "learning_rate")
    if np.isfinite(y).any():
        alt = f"Learning rate over steps, at most {np.nanmax(y):.3g}"
        figures.append(draw("Learning rate", alt, Series(x, y, "line-1")))
    x, y = _points(train, "grad_norm")
    if np.isfinite(y).any():
        alt = f"Gradient norm over steps, median {np.nanmedian(y):.3g}, at most {np.nanmax(y):.3g}"
        series = Series(x, y, "raw"), Series(x, smooth(y), "line-1")
        figures.append(draw("Gradient norm, before clipping", alt, *series))
    return figures


def smooth(y: np.ndarray) -> np.ndarray:
    """Returns the bias-corrected exponential moving average, over a twentieth of the points, of float [P].

    NaN is left out of the average; before the first number, the result is NaN.
    """
    window = min(max(len(y) / 20, 1.0), 100.0)
    decay = 1 - 1 / window
    total = weight = 0.0
    averages = np.full(len(y), math.nan)
    for i, value in enumerate(y):
        if math.isfinite(value):
            total, weight = decay * total + value, decay * weight + 1
        if weight:
            averages[i] = total / weight
    return averages


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(r["step"], r[name]) for r in rows if name in r]
    return np.array([x for x, _ in found], np.float64), np.array([y for _, y in found], np.float64)
