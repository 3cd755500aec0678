"""The figures of report.html, and how it writes numbers: training curves, calibration, predicted against gold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from jaxlm.report.charts import Series, chart, smooth
from jaxlm.tasks.classification_report import Predictions, calibration

_SCATTER_POINTS = 2000
_WRITTEN = {"f1": "F1", "roc": "ROC", "auc": "AUC", "mse": "MSE", "mae": "MAE", "r2": "R²"}
_WRITTEN |= {name.lower(): name for name in ("Matthews", "Pearson", "Spearman")}


@dataclass(frozen=True)
class Figure:
    """A chart with its heading, the (class, name) pairs of its legend, and a remark below it."""

    title: str
    svg: Markup
    keys: tuple[tuple[str, str], ...] = ()
    note: str = ""


def curves(rows: Sequence[Mapping[str, Any]], metric: str, best_step: int | None) -> list[Figure]:
    """Loss, evaluation metric, learning rate and gradient norm over the steps, as far as metrics.jsonl has them."""
    train = [r for r in rows if r.get("kind") == "train"]
    evaluations = [r for r in rows if r.get("kind") == "evaluation" and r.get("split") == "validation"]
    mark = None if best_step is None else (float(best_step), f"best, step {best_step:,}")
    steps = (0.0, float(max((r["step"] for r in rows), default=0) or 1))

    def draw(alt: str, *series: Series) -> Markup:
        return chart([s for s in series if s.y.size], alt=alt, x_label="step", y_label="", mark=mark, x_range=steps)

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
        figures.append(Figure("Loss", draw(alt, *series), keys))
    x, y = _points(evaluations, metric)
    if np.isfinite(y).any() and metric != "loss":
        title = f"Validation {format_name(metric)}"
        first_to_last = f"{format_score(y[0])} to {format_score(y[-1])}"
        alt = f"{title} from {first_to_last}, between {np.nanmin(y):.4f} and {np.nanmax(y):.4f}"
        figures.append(Figure(title, draw(alt, Series(x, y, "line-2", dots=True))))
    x, y = _points(train, "learning_rate")
    if np.isfinite(y).any():
        alt = f"Learning rate over steps, at most {np.nanmax(y):.3g}"
        figures.append(Figure("Learning rate", draw(alt, Series(x, y, "line-1"))))
    x, y = _points(train, "grad_norm")
    if np.isfinite(y).any():
        alt = f"Gradient norm over steps, median {np.nanmedian(y):.3g}, at most {np.nanmax(y):.3g}"
        svg = draw(alt, Series(x, y, "raw"), Series(x, smooth(y), "line-1"))
        figures.append(Figure("Gradient norm, before clipping", svg))
    return figures


def _points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(r["step"], r[name]) for r in rows if name in r]
    return np.array([x for x, _ in found], np.float64), np.array([y for _, y in found], np.float64)


def reliability(p: Predictions) -> Figure:
    """How often the predicted label is right, by the probability it was given."""
    confidence, accuracy, error = calibration(p)
    pairs = ", ".join(f"{c:.2f}: {a:.2f}" for c, a in zip(confidence, accuracy, strict=True))
    svg = chart(
        [Series(confidence, accuracy, "line-1", dots=True)],
        alt=f"Share that is right by probability, {pairs}",
        x_label="probability of the predicted label",
        y_label="share that is right",
        diagonal=True,
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )
    note = f"On the dashed line, probabilities can be taken at their word. Expected calibration error: {error:.3f}."
    return Figure("Calibration", svg, note=note)


def scatter(p: Predictions) -> Figure:
    """Predicted against gold values of a regression."""
    shown = np.unique(np.linspace(0, len(p) - 1, min(len(p), _SCATTER_POINTS)).astype(int))
    svg = chart(
        [Series(p.gold[shown], p.predicted[shown], "dot-1", dots=True, line=False)],
        alt=f"Predicted against gold values of {len(shown)} examples",
        x_label="gold",
        y_label="predicted",
        diagonal=True,
    )
    note = "" if len(shown) == len(p) else f"{len(shown):,} of {len(p):,} examples, evenly drawn."
    return Figure("Predicted against gold", svg, note=note)


def format_score(value: float | None) -> str:
    """A metric's value, with four decimals; a dash for what is missing or not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def format_name(name: str) -> str:
    """A key as people write it: `tokens_per_s` -> `tokens/s`, `f1_macro` -> `F1 macro`."""
    words = name.replace("_per_s", "/s").split("_")
    return " ".join(_WRITTEN.get(word, word) for word in words)


def format_number(value: Any) -> str:
    """For people: thousands set apart, four significant digits, a dash for what is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return str(value)


def format_duration(seconds: float) -> str:
    """`12.3 s`, `2 min 41 s`, `3 h 07 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
