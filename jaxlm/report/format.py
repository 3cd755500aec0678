"""Numbers, names and durations for people, and the scores of a run in a few lines."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_WRITTEN = {
    "f1": "F1",
    "roc": "ROC",
    "auc": "AUC",
    "mse": "MSE",
    "mae": "MAE",
    "r2": "R²",
    "lm": "language model",
    "ece": "ECE",
}
_WRITTEN |= {name.lower(): name for name in ("Matthews", "Pearson", "Spearman", "nDCG", "MRR")}


def format_score(value: float | None) -> str:
    """Returns a metric's value with four decimals; a dash for None and for a value that is not finite."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def format_name(name: str) -> str:
    """Returns a key as people write it: `tokens_per_s` -> `tokens/s`, `ndcg_at_10` -> `nDCG@10`."""
    words = name.replace("_per_s", "/s").replace("_at_", "@").split("_")
    return " ".join("@".join(_WRITTEN.get(part, part) for part in word.split("@")) for word in words)


def format_number(value: Any) -> str:
    """Returns a number with thousands set apart and four significant digits; a dash for None and NaN; else the text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return str(value)


def format_cell(value: Any) -> str:
    """Returns a table's cell: a float with three decimals, anything else as `format_number` does."""
    return f"{value:,.3f}" if isinstance(value, float) and math.isfinite(value) else format_number(value)


def format_duration(seconds: float) -> str:
    """Returns `12.3 s`, `2 min 41 s` or `3 h 07 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def format_counts(counts: Mapping[str, int]) -> str:
    """Returns counts by name in words, `64 rows, 2 truncated`, without those that are 0."""
    return ", ".join(f"{value:,} {name.replace('_', ' ')}" for name, value in counts.items() if value)


def headline_metrics(summary: Mapping[str, Any]) -> list[str]:
    """Returns the names of a summary's `metrics` that are headlines, in their order; [] if it has no such list."""
    return [metric["name"] for metric in summary.get("metrics") or [] if metric.get("headline", True)]


def baseline_columns(summary: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns name and scores of each baseline of a summary; one that has scores by split, once per split."""
    columns: list[tuple[str, Mapping[str, Any]]] = []
    for name, values in (summary.get("baselines") or {}).items():
        by_split = [(f"{name}, {split}", scores) for split, scores in values.items() if isinstance(scores, Mapping)]
        columns += by_split or [(name, values)]
    return columns


def score_lines(summary: Mapping[str, Any]) -> str:
    """Returns the headline scores of a finished run, a line for each split and each baseline.

    Args:
      summary: the contents of summary.json; without a `metrics` list, every score but those of single classes counts
        as a headline.
    """
    systems = [(f"{split} ({summary['name']})", scores) for split, scores in summary["scores"].items()]
    systems += [(f"baseline {name}", scores) for name, scores in baseline_columns(summary)]
    headlines = headline_metrics(summary)
    lines = []
    for name, scores in systems:
        shown = headlines or [metric for metric in scores if "/" not in metric]
        lines.append(f"{name:40s} " + "  ".join(f"{m} {scores[m]:.4f}" for m in shown if m in scores))
    return "\n".join(lines or ["finished; no validation or test split to score"])
