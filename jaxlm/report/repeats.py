"""What is said of several runs of one config together: mean and standard deviation of their scores, each, the best."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxlm.metrics.best import rank
from jaxlm.report.format import format_name, headline_metrics
from jaxlm.report.sections import ReportSection

_SPLITS = ("validation", "test")
_COPIED = ("metric", "metrics", "problem", "label_names", "task", "model", "environment")
"""Keys of a summary that are the same for all runs."""


def summarize(name: str, kind: str, summaries: Mapping[str, Mapping[str, Any]], command: str) -> dict[str, Any]:
    """Returns the contents of summary.json over several runs.

    Args:
      kind: "seeds" or "folds".
      summaries: of the runs, by name.
      command: what the user typed.
    Returns:
      Beside what a summary of one run has: `repeats`, the kind; `scores`, the mean of each metric by split, over the
      runs that define it; `sd`, its sample standard deviation, sqrt(sum (x - mean)^2 / (n - 1)), where at least two
      runs define it; `runs`, name, seed, steps, best step and scores of each; `best`, the name of the run with the
      best validation score, None without one.
    """
    first = next(iter(summaries.values()))
    mean: dict[str, dict[str, float]] = {}
    sd: dict[str, dict[str, float]] = {}
    for split in _SPLITS:
        scores = [summary["scores"][split] for summary in summaries.values() if split in summary["scores"]]
        for metric in dict.fromkeys(metric for found in scores for metric in found):
            values = np.asarray([found[metric] for found in scores if _is_number(found.get(metric))], np.float64)
            if len(values):
                mean.setdefault(split, {})[metric] = float(values.mean())
            if len(values) > 1:
                sd.setdefault(split, {})[metric] = float(values.std(ddof=1))
    return {
        "name": name,
        "status": "finished",
        "command": command,
        "repeats": kind,
        "scores": mean,
        "sd": sd,
        "best": _best(summaries, first),
        "runs": [
            {"name": run, "steps": summary["steps"], "best_step": summary["best_step"], "scores": summary["scores"]}
            for run, summary in summaries.items()
        ],
        **{key: first[key] for key in _COPIED if key in first},
    }


def repeat_sections(summary: Mapping[str, Any]) -> list[ReportSection]:
    """Returns the sections of report.html over several runs: a table of them, and their scores drawn."""
    shown = _shown_metrics(summary)
    columns = [(split, metric) for split in _SPLITS for metric in shown if metric in summary["scores"].get(split, {})]
    if not columns:
        return []
    rows: list[list[Any]] = [
        [run["name"], run["steps"], run["best_step"], *(_cell(run["scores"], *column) for column in columns)]
        for run in summary["runs"]
    ]
    for name, values in (("mean", summary["scores"]), ("sd", summary["sd"])):
        rows.append([name, None, None, *(_cell(values, *column) for column in columns)])
    heads = ["Run", "Steps", "Best step", *(f"{format_name(metric)}, {split}" for split, metric in columns)]
    note = f"The best by {format_name(summary['metric'])} is {summary['best']}. " if summary["best"] else ""
    note += "sd: sample standard deviation."
    return [
        ReportSection("Each run", "table", {"columns": heads, "rows": rows}, note),
        _chart(summary, *columns[0]),
    ]


def repeat_lines(summary: Mapping[str, Any]) -> str:
    """Returns the headline scores of several runs for the console: each run, then mean and standard deviation."""
    shown, lines = _shown_metrics(summary), []
    for split in (split for split in _SPLITS if split in summary["scores"]):
        for run in summary["runs"]:
            values = run["scores"].get(split, {})
            said = "  ".join(f"{m} {values[m]:.4f}" for m in shown if _is_number(values.get(m)))
            lines.append(_line(split, run["name"], said))
        means, sds = summary["scores"][split], summary["sd"].get(split, {})
        said = "  ".join(f"{m} {means[m]:.4f}" + (f" ± {sds[m]:.4f}" if m in sds else "") for m in shown if m in means)
        lines.append(_line(split, f"{summary['name']}, mean ± sd", said))
    return "\n".join(lines or ["finished; no validation or test split to score"])


def _line(split: str, name: str, said: str) -> str:
    system = f"{split} ({name})"
    return f"{system:40s} {said}"


def _shown_metrics(summary: Mapping[str, Any]) -> list[str]:
    """The metric that chooses, then the other headlines."""
    found = dict.fromkeys(metric for scores in summary["scores"].values() for metric in scores if "/" not in metric)
    wanted = [summary["metric"], *(headline_metrics(summary) or found)]
    return [metric for metric in dict.fromkeys(wanted) if metric in found]


def _chart(summary: Mapping[str, Any], split: str, metric: str) -> ReportSection:
    """The scores of the runs as dots, and their mean as a line."""
    values = [_cell(run["scores"], split, metric) for run in summary["runs"]]
    numbers, mean = list(range(1, len(values) + 1)), summary["scores"][split][metric]
    content = {
        "series": [
            {"x": numbers, "y": values, "style": "dots", "name": "a run"},
            {"x": [numbers[0], numbers[-1]], "y": [mean, mean], "style": "line", "name": "mean"},
        ],
        "axes": {"x": "run", "y": f"{format_name(metric)}, {split}"},
    }
    return ReportSection("Spread", "chart", content)


def _best(summaries: Mapping[str, Mapping[str, Any]], first: Mapping[str, Any]) -> str | None:
    metric = first["metric"]
    if metric is None:
        return None
    higher = {found["name"]: found["higher_is_better"] for found in first["metrics"]}.get(metric, True)
    ranks = {
        name: rank(summary["scores"].get("validation", {}).get(metric), higher_is_better=higher)
        for name, summary in summaries.items()
    }
    best = max(ranks, key=lambda name: ranks[name])
    return best if math.isfinite(ranks[best]) else None


def _cell(scores: Mapping[str, Mapping[str, Any]], split: str, metric: str) -> float | None:
    value: Any = scores.get(split, {}).get(metric)
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
