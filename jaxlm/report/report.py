"""The report of a run: report.html, one self-contained page out of the files of a run directory."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from jaxlm.errors import UserError
from jaxlm.files import atomic_write, explain_write_errors
from jaxlm.metrics.classification import PRIMARY, confusion_matrix, higher_is_better
from jaxlm.report.format import curves, format_duration, format_name, format_number, format_score, reliability, scatter
from jaxlm.run.run_dir import CONFIG, PREDICTIONS, REPORT, SAMPLES, SUMMARY
from jaxlm.run.tracking import read_metrics
from jaxlm.tasks.classification_report import Predictions, per_class, read_predictions, top_confusions, worst_errors

_MATRIX_LABELS = 25
"""Most labels for which a confusion matrix and the scores of every class are shown whole."""
_SPLITS = ("validation", "test")
_PROBLEMS = {
    "binary": "binary classification",
    "multiclass": "multi-class classification",
    "multilabel": "multi-label classification",
    "regression": "regression",
}
_PRETRAINING = {
    "causal_lm": "causal language model",
    "prefix_lm": "prefix language model",
    "masked_lm": "masked language model",
    "span_corruption": "span corruption",
    "replaced_tokens": "replaced-token detection",
}
_SAMPLES = 24
"""Most samples of a generative model that are shown."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html and return its path.

    It is made of config.yaml, metrics.jsonl, summary.json, samples.jsonl and predictions/*.jsonl in that directory.
    Whatever is missing leaves its part of the page out, so that the report of an unfinished run can be written too. The
    page needs no other file and no network, and everything that comes from the user's data is escaped.

    Raises:
      UserError: `run_dir` holds neither summary.json nor metrics.jsonl, or one of them is damaged.
      RunFailure: the file cannot be written.
    """
    page = _template().render(_context(run_dir))
    path = run_dir / REPORT
    with explain_write_errors(path), atomic_write(path) as temporary:
        # A text may hold half a surrogate pair, which no encoding takes.
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "plain": format_name, "percent": lambda v: f"{v:.1%}"}
    return environment.from_string(resources.files("jaxlm.report").joinpath("report.html.in").read_text("utf-8"))


def _context(run_dir: Path) -> dict[str, Any]:
    summary, rows = _summary(run_dir / SUMMARY), read_metrics(run_dir)
    if not summary and not rows:
        raise UserError(f"{run_dir}: expected a run directory, with summary.json or metrics.jsonl in it; found neither")
    task = summary.get("task", {})
    labels = [str(name) for name in summary.get("label_names") or []]
    problem = summary.get("problem", "")  # not known before the run has finished
    metric = summary.get("metric") or PRIMARY.get(problem) or _logged_metric(rows)
    best_step = summary.get("best_step") or _best_step(rows, metric)
    scores = summary.get("scores") or _scores_at(rows, best_step)
    model = summary.get("model", {})
    config = run_dir / CONFIG
    return {
        "name": summary.get("name") or run_dir.resolve().name,
        "status": summary.get("status", "unfinished"),
        "problem": problem,
        "metric": metric,
        "lower_is_better": not higher_is_better(metric),
        "subtitle": _subtitle(problem, labels, model),
        "tiles": _tiles(summary, rows, scores, metric, best_step),
        "table": _score_table(scores, summary.get("baselines") or {}, metric, problem),
        "best_step": best_step,
        "curves": curves(rows, metric, best_step),
        "analysis": _analysis(run_dir / PREDICTIONS, problem, labels, task),
        "matrix_labels": _MATRIX_LABELS,
        "samples": _samples(run_dir / SAMPLES),
        "data": _data_table(summary.get("data", {})),
        "facts": {
            "Throughput": list(_facts(summary.get("throughput", {}))),
            "Model": list(_facts(model)),
            "Environment": list(_facts(summary.get("environment", {}))),
        },
        "command": summary.get("command", ""),
        "config": config.read_text("utf-8", errors="replace") if config.exists() else "",
    }


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: expected JSON; {error}. Run the training command again to write it anew") from None


def _samples(path: Path) -> list[dict[str, Any]]:
    """What a generative model wrote, the latest first."""
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8", errors="replace").split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path}: expected JSON lines; {error}. Delete the file") from None
    return sorted(rows, key=lambda row: -row["step"])[:_SAMPLES]


def _subtitle(problem: str, labels: Sequence[str], model: Mapping[str, Any]) -> str:
    kinds = _PROBLEMS | _PRETRAINING
    parts = [kinds[problem]] if problem in kinds else []
    if len(labels) > 2:
        parts.append(f"{len(labels)} labels")
    if model.get("family"):
        parts.append(str(model["family"]))
    if model.get("parameters"):
        parts.append(f"{model['parameters'] / 1e6:,.1f} M parameters")
    return " · ".join(parts)


def _logged_metric(rows: Sequence[Mapping[str, Any]]) -> str:
    """The metric that curves are drawn of when no summary names it."""
    logged = {name for r in rows if r.get("kind") == "evaluation" for name in r}
    return next((name for name in PRIMARY.values() if name in logged), "loss")


def _evaluations(rows: Sequence[Mapping[str, Any]], metric: str) -> list[Mapping[str, Any]]:
    return [r for r in rows if r.get("kind") == "evaluation" and r.get("split") == "validation" and metric in r]


def _best_step(rows: Sequence[Mapping[str, Any]], metric: str) -> int | None:
    found = [r for r in _evaluations(rows, metric) if math.isfinite(r[metric])]
    sign = 1 if higher_is_better(metric) else -1
    return max(found, key=lambda r: sign * r[metric])["step"] if found else None


def _scores_at(rows: Sequence[Mapping[str, Any]], step: int | None) -> dict[str, dict[str, float]]:
    known = ("kind", "step", "split", "time")
    at_step = [r for r in rows if r.get("kind") == "evaluation" and r["step"] == step]
    return {str(r.get("split")): {k: v for k, v in r.items() if k not in known} for r in at_step}


def _tiles(
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, float]],
    metric: str,
    best_step: int | None,
) -> list[tuple[str, str]]:
    """The figures at the head of the page, each with what it says."""
    tiles = [
        (format_score(scores[s][metric]), f"{s} {format_name(metric)}")
        for s in ("test", "validation")
        if metric in scores.get(s, {})
    ]
    steps = summary.get("steps") or max((r["step"] for r in rows), default=0)
    note = f"steps, best at {best_step:,}" if best_step is not None else "steps"
    tiles.append((f"{steps:,}", note))
    for name in ("examples_per_s", "tokens_per_s"):
        if name in summary.get("throughput", {}):
            tiles.append((f"{summary['throughput'][name]:,.0f}", format_name(name)))
    return tiles[:4]


def _score_table(
    scores: Mapping[str, Mapping[str, float]], baselines: Mapping[str, Mapping[str, Any]], metric: str, problem: str
) -> dict[str, Any]:
    """Metrics down, splits and then baselines across; without the per-class scores, which have a table of their own."""
    splits = sorted(scores, key=lambda s: (_SPLITS.index(s) if s in _SPLITS else len(_SPLITS), s))
    columns = [(split, scores[split]) for split in splits]
    for name, values in baselines.items():
        nested = {f"{name}, {key}": value for key, value in values.items() if isinstance(value, Mapping)}
        columns += list(nested.items()) or [(name, values)]
    names = dict.fromkeys(name for _, values in columns for name in values if "/" not in name)
    if problem in ("binary", "multiclass"):  # micro averages then equal the accuracy
        names = {name: None for name in names if not name.endswith("_micro") or name == metric}
    ordered = sorted(names, key=lambda name: name != metric)
    return {
        "columns": [name for name, _ in columns],
        "num_splits": len(splits),
        "rows": [
            (name, format_name(name), [format_score(values.get(name)) for _, values in columns]) for name in ordered
        ],
    }


def _analysis(folder: Path, problem: str, labels: Sequence[str], task: Mapping[str, Any]) -> dict[str, Any] | None:
    """What is shown of single predictions: of the test split, or else of validation, or else of the first there is."""
    if problem not in _PROBLEMS:
        return None
    text = task.get("text", "text")
    columns = [text] if isinstance(text, str) else list(text)
    paths = sorted(folder.glob("*.jsonl"), key=lambda p: (p.stem != "test", p.stem != "validation", p.stem))
    for path in paths:
        found = read_predictions(
            path, problem, labels, columns, task.get("label", "label"), task.get("label_separator")
        )
        if found:
            return _describe(found) | {"text_columns": columns}
    return None


def _describe(p: Predictions) -> dict[str, Any]:
    described: dict[str, Any] = {
        "split": p.split,
        "count": len(p),
        "skipped": p.skipped,
        "num_wrong": None,
        "labels": p.labels,
        "errors": worst_errors(p),
        "classes": None,
        "matrix": None,
        "confusions": None,
        "figures": [],
    }
    if p.problem == "regression":
        return described | {"figures": [scatter(p)]}
    wrong = p.gold != p.predicted
    described["num_wrong"] = int((wrong.any(axis=1) if wrong.ndim > 1 else wrong).sum())
    classes = per_class(p)
    if len(classes) > _MATRIX_LABELS:
        classes.sort(key=lambda row: math.inf if row["f1"] is None else row["f1"])
    described["classes"] = classes
    if p.problem == "multilabel":
        return described
    matrix = confusion_matrix(p.gold, p.predicted, len(p.labels))
    if len(p.labels) <= _MATRIX_LABELS:
        shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
        described["matrix"] = [
            list(zip(counts, row, strict=True)) for counts, row in zip(matrix.tolist(), shares.tolist(), strict=True)
        ]
    else:
        described["confusions"] = top_confusions(matrix, p.labels)
    return described | {"figures": [reliability(p)]}


def _facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a possibly nested mapping, as people write them."""
    for key, value in values.items():
        name = prefix + format_name(str(key))
        if isinstance(value, Mapping):
            yield from _facts(value, f"{name} · ")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(format_number, value)) or "none"
        elif key.endswith("_share") and isinstance(value, int | float):
            yield name, f"{value:.1%}"
        elif key.endswith("seconds") and isinstance(value, int | float):
            yield name.removesuffix(" seconds").replace("seconds", "time"), format_duration(value)
        else:
            yield name, format_number(value)


def _data_table(data: Mapping[str, Any]) -> dict[str, Any]:
    """Splits down, their counts across; what belongs to no split goes below."""
    splits = {name: dict(_facts(counts)) for name, counts in data.items() if isinstance(counts, Mapping)}
    columns = list(dict.fromkeys(name for counts in splits.values() for name in counts))
    return {
        "columns": columns,
        "rows": [(name, [counts.get(column, "–") for column in columns]) for name, counts in splits.items()],
        "rest": list(_facts({k: v for k, v in data.items() if not isinstance(v, Mapping)})),
    }
