"""Scores a split by group: every metric for each value of a column, with bootstrap intervals, and the gaps between."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.data.dataset import Dataset
from jaxlm.errors import UserError, did_you_mean
from jaxlm.inference.evaluator import Evaluation
from jaxlm.report.format import format_name
from jaxlm.report.sections import ReportSection
from jaxlm.tasks.base import Task
from jaxlm.tasks.records import Answer

MOST_GROUPS = 50
"""Values that a column may have."""
_COVERED = (2.5, 97.5)
"""Percentiles of a 95 % interval."""


class Slicing(NamedTuple):
    """What `evaluate --slice` asks for.

    Attributes:
      columns: whose values are the groups; each by itself.
      resamples: of the bootstrap; 0: no intervals.
      seed: of the bootstrap.
    """

    columns: Sequence[str]
    resamples: int = 200
    seed: int = 0


def slice_scores(task: Task, dataset: Dataset, evaluation: Evaluation, slicing: Slicing) -> dict[str, Any]:
    """Returns the scores of each group of each column, JSON values by column.

    A column holds `groups`, by value: `rows`, `scores` (those that its rows alone decide), and `intervals`, [low, high]
    of each: percentiles 2.5 and 97.5 over samples of the group's rows, drawn with replacement (Efron and Tibshirani,
    "An Introduction to the Bootstrap", 1993, chapter 13); and `gaps`, by metric: the `highest` and the `lowest` group,
    their difference `gap`, and its `interval` over the same samples. An interval is left out where a metric is not
    defined on half of the samples; a score of single classes (`f1/LABEL`) has neither interval nor gap.

    Raises:
      UserError: no such column, one of too many values, or a task that does not answer rows.
    """
    examples = dataset.examples()
    if examples is None or not evaluation.answers:
        raise UserError("--slice: this task answers no rows that could be grouped; leave it out")
    if task.vectors and evaluation.answers[0].label is None:
        raise UserError("--slice: texts are searched for among the whole split; no group has scores of its own")
    _check_columns(slicing.columns, examples.table.columns, evaluation.answers)
    no_sums = dict.fromkeys(evaluation.sums, math.nan)  # of the whole split: no group's own

    def scores(answers: Sequence[Answer]) -> dict[str, float]:
        found = task.scores(no_sums, answers, dataset)
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    made = {}
    for column in slicing.columns:
        groups: dict[str, list[Answer]] = {}
        for answer in evaluation.answers:
            groups.setdefault(_name(answer.row.get(column)), []).append(answer)
        groups = dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))
        found = {name: scores(answers) for name, answers in groups.items()}
        samples = {
            name: _resample(scores, answers, slicing, number) for number, (name, answers) in enumerate(groups.items())
        }
        made[column] = {
            "groups": {
                name: {
                    "rows": len(groups[name]),
                    "scores": found[name],
                    "intervals": {m: i for m in found[name] if (i := _interval(samples[name].get(m))) is not None},
                }
                for name in groups
            },
            "gaps": _gaps(found, samples),
        }
    return made


def _check_columns(columns: Sequence[str], known: Sequence[str], answers: Sequence[Answer]) -> None:
    for column in columns:
        if column not in known:
            shown = ", ".join(known)
            raise UserError(f"--slice {column}: no such column; the rows have: {shown}{did_you_mean(column, known)}")
        values = len({_name(answer.row.get(column)) for answer in answers})
        if values > MOST_GROUPS:
            raise UserError(
                f"--slice {column}: {values} different values in {len(answers)} rows; expected a column of at most "
                f"{MOST_GROUPS} groups"
            )


def _name(value: Any) -> str:
    """How a group is called."""
    if value is None or value == "":
        return "(none)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _resample(scores: Any, answers: Sequence[Answer], slicing: Slicing, number: int) -> dict[str, np.ndarray]:
    """Returns float64 [resamples] by metric, NaN where a sample does not define it."""
    rng = np.random.default_rng((slicing.seed, number))
    drawn = [
        scores([answers[i] for i in rng.integers(len(answers), size=len(answers)).tolist()])
        for _ in range(slicing.resamples)
    ]
    names = dict.fromkeys(name for one in drawn for name in one if "/" not in name)
    return {name: np.asarray([one.get(name, math.nan) for one in drawn], np.float64) for name in names}


def _interval(values: np.ndarray | None) -> list[float] | None:
    finite = np.zeros(0) if values is None else values[np.isfinite(values)]
    if values is None or len(finite) * 2 <= len(values):
        return None
    return [float(value) for value in np.percentile(finite, _COVERED)]


def _gaps(
    found: Mapping[str, Mapping[str, float]], samples: Mapping[str, Mapping[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """The largest difference between two groups, by metric."""
    gaps: dict[str, dict[str, Any]] = {}
    for metric in dict.fromkeys(name for scores in found.values() for name in scores if "/" not in name):
        defined = {name: scores[metric] for name, scores in found.items() if metric in scores}
        if len(defined) < 2:
            continue
        highest, lowest = max(defined, key=lambda n: defined[n]), min(defined, key=lambda n: defined[n])
        gap: dict[str, Any] = {"highest": highest, "lowest": lowest, "gap": defined[highest] - defined[lowest]}
        if metric in samples[highest] and metric in samples[lowest]:
            interval = _interval(samples[highest][metric] - samples[lowest][metric])
            gap |= {} if interval is None else {"interval": interval}
        gaps[metric] = gap
    return gaps


def slice_sections(task: Task, slices: Mapping[str, Any]) -> list[ReportSection]:
    """Returns tables of the groups and of the gaps, of the headline metrics."""
    sections = []
    for column, found in slices.items():
        metrics = [
            m.name for m in task.metrics if m.headline and any(m.name in g["scores"] for g in found["groups"].values())
        ]
        rows: list[list[Any]] = [
            [name, group["rows"], *(_cell(group["scores"].get(m), group["intervals"].get(m)) for m in metrics)]
            for name, group in found["groups"].items()
        ]
        content = {"columns": [column, "Rows", *map(format_name, metrics)], "rows": rows}
        sections.append(ReportSection(f"By {column}", "table", content, "In brackets: 95 % bootstrap intervals."))
        gaps = [
            [format_name(m), gap["highest"], gap["lowest"], _cell(gap["gap"], gap.get("interval"))]
            for m in metrics
            if (gap := found["gaps"].get(m)) is not None
        ]
        if gaps:
            content = {"columns": ["Metric", "Highest", "Lowest", "Gap"], "rows": gaps}
            note = "The two groups were chosen by their scores: of many groups, some lie apart by chance."
            sections.append(ReportSection(f"Gaps by {column}", "table", content, note))
    return sections


def slice_lines(task: Task, slices: Mapping[str, Any]) -> str:
    """Returns the tables of `slice_sections` as lines of text."""
    lines: list[str] = []
    for section in slice_sections(task, slices):
        table = [list(map(str, row)) for row in (section.content["columns"], *section.content["rows"])]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        lines += [
            section.title,
            *("  ".join(f"{c:{w}s}" for c, w in zip(row, widths, strict=True)) for row in table),
            "",
        ]
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")
