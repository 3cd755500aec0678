"""What is said of a sweep: its trials, the best, a table and plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from jaxlm.report.format import format_name, format_number
from jaxlm.report.sections import ReportSection
from jaxlm.sweep.space import Range
from jaxlm.sweep.study import Study

METRIC = "metric"
"""The study's record of what trials are compared by."""
_STATES = {
    "COMPLETE": "finished",
    "PRUNED": "ended early",
    "FAIL": "failed",
    "RUNNING": "running",
    "WAITING": "waiting",
}


def describe(study: Study) -> dict[str, Any]:
    """Returns the entries of the sweep's summary.json.

    `metric`, `higher_is_better`; `trials`, each with `number`, `state`, `value` (of the validation split; of one that
    ended early its last), `values` by key, `evaluations`, and `error`; `best`, the number of the best finished trial.
    """
    metric = study.study.user_attrs.get(METRIC, {"name": None, "higher_is_better": True})
    sign = 1.0 if metric["higher_is_better"] else -1.0
    trials: list[dict[str, Any]] = []
    for trial in study.trials:
        reported = [trial.intermediate_values[i] for i in sorted(trial.intermediate_values)]
        value = trial.value if trial.values else reported[-1] if reported else None
        trials.append(
            {
                "number": trial.number,
                "state": _STATES[trial.state.name],
                "value": None if value is None or not math.isfinite(value) else sign * value,
                "values": {k: _plain(study, k, v) for k, v in trial.params.items()},
                "evaluations": len(reported),
                **({"error": trial.user_attrs["error"]} if "error" in trial.user_attrs else {}),
            }
        )
    finished = [t for t in trials if t["state"] == "finished" and t["value"] is not None]
    best = max(finished, key=lambda t: sign * t["value"])["number"] if finished else None
    return {"metric": metric["name"], "higher_is_better": metric["higher_is_better"], "best": best, "trials": trials}


def _plain(study: Study, key: str, value: Any) -> Any:
    return value if isinstance(study.space.get(key), Range) else json.loads(value)


def sweep_sections(summary: Mapping[str, Any]) -> list[ReportSection]:
    """Returns the table of the trials, the best first; their values in order; and the values by each key's choice."""
    if not summary["trials"]:
        return []
    sign = 1.0 if summary["higher_is_better"] else -1.0
    metric = format_name(summary["metric"] or "value")
    keys = list(dict.fromkeys(key for trial in summary["trials"] for key in trial["values"]))
    order = sorted(
        summary["trials"], key=lambda t: (t["state"] != "finished", -sign * (t["value"] or -math.inf * sign))
    )
    rows = [[t["number"], t["state"], t["value"], *(_shown(t["values"].get(key)) for key in keys), t["evaluations"]]
            for t in order]  # fmt: skip
    columns = ["Trial", "State", f"{metric}, validation", *keys, "Evaluations"]
    sections = [ReportSection("Trials", "table", {"columns": columns, "rows": rows}, "The best first.")]
    finished = [t for t in summary["trials"] if t["state"] == "finished" and t["value"] is not None]
    if not finished:
        return sections
    numbers, values = [t["number"] for t in finished], [t["value"] for t in finished]
    best = [sign * max(sign * v for v in values[: i + 1]) for i in range(len(values))]
    series = [
        {"x": numbers, "y": values, "style": "dots", "name": "a trial"},
        {"x": numbers, "y": best, "style": "line", "name": "the best so far"},
    ]
    sections.append(ReportSection("History", "chart", {"series": series, "axes": {"x": "trial", "y": metric}}))
    return sections + [section for key in keys if (section := _by_key(key, finished, metric)) is not None]


def _by_key(key: str, finished: list[dict[str, Any]], metric: str) -> ReportSection | None:
    """The values of the finished trials by a key of numbers; of small positive ones by the logarithm."""
    points = [(t["values"][key], t["value"]) for t in finished if key in t["values"]]
    if not all(isinstance(x, int | float) and not isinstance(x, bool) for x, _ in points) or len(points) < 2:
        return None
    logarithmic = min(x for x, _ in points) > 0 and max(x for x, _ in points) >= 8 * min(x for x, _ in points)
    xs = [math.log10(x) if logarithmic else x for x, _ in points]
    axes = {"x": f"log10 of {key}" if logarithmic else key, "y": metric}
    return ReportSection(
        f"By {key}", "chart", {"series": [{"x": xs, "y": [y for _, y in points], "style": "dots"}], "axes": axes}
    )


def sweep_lines(summary: Mapping[str, Any]) -> str:
    """Returns the trials for the console, the best last."""
    sign = 1.0 if summary["higher_is_better"] else -1.0
    finished = sorted((t for t in summary["trials"] if t["state"] == "finished"), key=lambda t: sign * t["value"])
    lines = [
        f"trial {t['number']:<4d} {summary['metric']} {t['value']:.4f}  "
        + "  ".join(f"{key}={_shown(value)}" for key, value in t["values"].items())
        for t in finished
    ]
    others = len(summary["trials"]) - len(finished)
    return "\n".join([*lines, *([f"{others} more ended early, failed or are running"] if others else [])])


def _shown(value: Any) -> Any:
    if isinstance(value, str) or value is None:
        return value
    return format_number(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)
