"""report.html: one self-contained page, made from the files of a run directory."""

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
from jaxlm.metrics.best import rank
from jaxlm.report.charts import section_figure
from jaxlm.report.curves import training_curves
from jaxlm.report.format import (
    baseline_columns,
    format_cell,
    format_duration,
    format_name,
    format_number,
    format_score,
    headline_metrics,
)
from jaxlm.report.sections import ReportSection, excerpt, read_analysis, to_json
from jaxlm.run.run_dir import ANALYSIS, CONFIG, REPORT, SAMPLES, SUMMARY
from jaxlm.run.tracking import read_metrics

_SPLITS = ("validation", "test")
_SAMPLES = 24
"""Most samples of a generative model that are shown."""
_LONG_TABLE = 25
"""A table of more rows shows `_FIRST_ROWS` of them and hides the whole behind a click."""
_FIRST_ROWS = 15
_PAGE_WIDTH = 120
"""Letters that stand beside each other in the cells of a table as wide as the page."""
_LONG_TEXT = 60
"""A column that holds a longer string gets the width of a text."""


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir`/report.html and returns its path.

    Reads config.yaml, metrics.jsonl, summary.json, samples.jsonl and analysis.json of that directory. A file that is
    missing leaves its part of the page out, so that the report of an unfinished run can be written too. The page needs
    no other file and no network, and everything that comes from the user's data is escaped.

    Raises:
      UserError: `run_dir` holds neither summary.json nor metrics.jsonl, or one of its files is damaged.
      RunFailure: the file cannot be written.
    """
    return _write(run_dir / REPORT, _context(run_dir))


def write_page(path: Path, *, name: str, subtitle: str, title: str, sections: Sequence[ReportSection]) -> Path:
    """Writes a page of sections in the form of report.html, for what is not one run's report; returns its path.

    Args:
      path: its folder is made.
      name: the page's heading; `subtitle` stands below it.
      title: heading of the sections.
    Raises:
      RunFailure: the file cannot be written.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    blocks = [_block(ReportSection(**json.loads(json.dumps(to_json(section._asdict()))))) for section in sections]
    blank = {
        "status": "",
        "remarks": [],
        "tiles": [],
        "table": {"rows": []},
        "curves": [],
        "samples": None,
        "facts": {},
        "config": "",
    }
    data = {"rows": [], "rest": []}
    shown = {"name": name, "subtitle": subtitle, "analysis_title": title, "analysis": blocks}
    return _write(path, {**blank, **shown, "data": data, "command": ""})


def _write(path: Path, context: Mapping[str, Any]) -> Path:
    page = _template().render(context)
    with explain_write_errors(path), atomic_write(path) as temporary:
        # A text may hold half a surrogate pair, which no encoding takes.
        temporary.write_bytes(page.encode("utf-8", "replace"))
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": format_number, "plain": format_name, "cell": format_cell}
    return environment.from_string(resources.files("jaxlm.report").joinpath("report.html.in").read_text("utf-8"))


def _context(run_dir: Path) -> dict[str, Any]:
    summary, rows = _summary(run_dir / SUMMARY), read_metrics(run_dir)
    if not summary and not rows:
        raise UserError(f"{run_dir}: expected a run directory, with summary.json or metrics.jsonl in it; found neither")
    directions = {m["name"]: m.get("higher_is_better", True) for m in summary.get("metrics") or []}
    metric = summary.get("metric") or next(iter(directions), "loss")
    higher_is_better = directions.get(metric, metric != "loss")
    best_step = summary.get("best_step") or _best_step(rows, metric, higher_is_better)
    scores = summary.get("scores") or _scores_at(rows, best_step)
    analysis = read_analysis(run_dir / ANALYSIS)
    config = run_dir / CONFIG
    status = summary.get("status", "unfinished")
    return {
        "name": summary.get("name") or run_dir.resolve().name,
        # The page is the last thing that a run writes before it is finished.
        "status": "finished" if status == "reporting" else status,
        "metric": metric,
        "caption": _caption(summary, metric, best_step, higher_is_better=higher_is_better),
        "subtitle": _subtitle(summary),
        "remarks": list(map(str, summary.get("remarks") or [])),
        "tiles": _tiles(summary, rows, scores, metric, best_step),
        "table": _score_table(summary, scores, metric),
        "curves": training_curves(rows, metric, best_step),
        "analysis_title": _analysis_title(summary),
        "analysis": [_block(section) for section in analysis],
        "samples": _samples(run_dir / SAMPLES),
        "data": _data_table(summary.get("data", {})),
        "facts": {
            name: list(_facts(summary.get(key, {})))
            for name, key in (("Throughput", "throughput"), ("Model", "model"), ("Environment", "environment"))
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


def _subtitle(summary: Mapping[str, Any]) -> str:
    """Says what was trained: the task, its problem, how many labels, the model."""
    model = summary.get("model", {})
    names = (summary.get("task", {}).get("kind"), summary.get("problem"))
    kind, problem = (format_name(str(name or "")) for name in names)
    parts = [part for part in ("" if kind in problem else kind, problem) if part]
    if len(labels := summary.get("label_names") or []) > 2:
        parts.append(f"{len(labels)} labels")
    elif summary.get("positive_label") is not None:
        parts.append(f"positive: {summary['positive_label']}")
    if model.get("family"):
        parts.append(str(model["family"]))
    if model.get("parameters"):
        parts.append(f"{model['parameters'] / 1e6:,.1f} M parameters")
    return " · ".join(parts)


def _caption(summary: Mapping[str, Any], metric: str, best_step: int | None, *, higher_is_better: bool) -> str:
    """Says whose scores the table holds."""
    if "repeats" in summary:
        return f"Mean of {len(summary['runs'])} {summary['repeats']}, and sample standard deviation."
    if best_step is None:
        return "The parameters of the last step."
    lower = "" if higher_is_better else " (lower is better)"
    return f"The checkpoint of step {format_number(best_step)}, the best by {format_name(metric)}{lower}."


def _analysis_title(summary: Mapping[str, Any]) -> str:
    if "repeats" in summary:
        return "Runs"
    split = summary.get("analysis_split", "")
    return f"Predictions on {split}" if split else "Predictions"


def _best_step(rows: Sequence[Mapping[str, Any]], metric: str, higher_is_better: bool) -> int | None:
    evaluations = [r for r in rows if r.get("kind") == "evaluation" and r.get("split") == "validation"]
    finite = [r for r in evaluations if math.isfinite(r.get(metric, math.nan))]
    return max(finite, key=lambda r: rank(r[metric], higher_is_better=higher_is_better))["step"] if finite else None


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
    """Returns the figures at the head of the page, each with its name."""
    tiles = [
        (format_score(scores[s][metric]), f"{s} {format_name(metric)}")
        for s in ("test", "validation")
        if metric in scores.get(s, {})
    ]
    if "repeats" in summary:
        return [*tiles, (str(len(summary["runs"])), summary["repeats"])]
    steps = summary.get("steps") or max((r["step"] for r in rows), default=0)
    tiles.append((f"{steps:,}", f"steps, best at {best_step:,}" if best_step is not None else "steps"))
    for name in ("examples_per_s", "tokens_per_s"):
        if name in summary.get("throughput", {}):
            tiles.append((f"{summary['throughput'][name]:,.0f}", format_name(name)))
    return tiles[:4]


def _score_table(summary: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]], metric: str) -> dict[str, Any]:
    """Metrics down, splits and then baselines across; headlines first, scores of single classes left out."""
    splits = sorted(scores, key=lambda s: (_SPLITS.index(s) if s in _SPLITS else len(_SPLITS), s))
    own = [(split, scores[split]) for split in splits]
    own += [(f"{split}, sd", sd) for split, sd in (summary.get("sd") or {}).items()]
    columns = own + baseline_columns(summary)
    names = dict.fromkeys(name for _, values in columns for name in values if "/" not in name)
    headlines = headline_metrics(summary) or list(names)
    order = [name for name in (metric, *headlines) if name in names]
    return {
        "columns": [name for name, _ in columns],
        "num_splits": len(own),
        "rows": [
            (
                "primary" if name == metric else "" if name in headlines else "muted",
                format_name(name),
                [format_score(values.get(name)) for _, values in columns],
            )
            for name in dict.fromkeys([*order, *names])
        ],
    }


def _block(section: ReportSection) -> dict[str, Any]:
    """Returns what the template needs of a section."""
    block: dict[str, Any] = {"kind": section.kind, "title": section.title, "note": section.note}
    content = section.content
    if section.kind == "chart":
        return block | {"figure": section_figure(section.title, content, section.note)}
    if section.kind == "matrix":
        counts = np.array(content["counts"], np.int64).reshape(len(content["labels"]), len(content["labels"]))
        totals = np.array(content["totals"], np.int64) if content.get("totals") else counts.sum(axis=1)
        shares = counts / np.maximum(totals, 1)[:, None]
        cells = [list(zip(*row, strict=True)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]
        return block | {"rows": cells} | _matrix_layout(list(map(str, content["labels"])))
    return block | {"whole": True} | _table(content["columns"], content["rows"], content.get("bars", ""))


def _matrix_layout(labels: Sequence[str]) -> dict[str, Any]:
    """Says how a matrix stands on the page: beside another part, or as wide as the page; names upright where long."""
    lengths = [max(len(label) + 2, 6) for label in labels]
    width = sum(lengths) + max(lengths, default=0)
    upright = width > _PAGE_WIDTH
    whole = upright or width > _PAGE_WIDTH // 2
    return {"labels": labels, "whole": whole, "upright": upright}


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]], bars: str = "") -> dict[str, Any]:
    """Returns a table for the template: each column with its CSS class, by the cells that it holds."""
    styles = [_style([row[i] for row in rows]) for i in range(len(columns))]
    return {
        "columns": list(zip(columns, styles, strict=True)),
        "rows": [list(zip(row, styles, strict=True)) for row in rows],
        "bars": list(columns).index(bars) if bars in columns else None,
        "num_shown": _FIRST_ROWS if len(rows) > _LONG_TABLE else len(rows),
    }


def _style(cells: Sequence[Any]) -> str:
    texts = [cell for cell in cells if isinstance(cell, str)]
    if not texts:
        return "num"
    return "text" if any(len(text) > _LONG_TEXT or "\n" in text for text in texts) else ""


def _samples(path: Path) -> dict[str, Any] | None:
    """Returns the table of what a generative model wrote, the latest first; None if it wrote nothing."""
    if not path.exists():
        return None
    try:
        rows = [json.loads(line) for line in path.read_text("utf-8", errors="replace").split("\n") if line]
    except ValueError as error:
        raise UserError(f"{path}: expected JSON lines; {error}. Delete the file") from None
    latest = sorted(rows, key=lambda row: -row["step"])[:_SAMPLES]
    if not latest:
        return None
    if any("reference" in row for row in latest):
        cells = [
            [row["step"], excerpt(str(row["prompt"])), *(str(row.get(name, "")) for name in ("text", "reference"))]
            for row in latest
        ]
        return _table(("Step", "Source", "Written", "Reference"), cells)
    cells = [[row["step"], str(row["prompt"]), str(row["text"])] for row in latest]
    return _table(("Step", "Prompt", "Continuation"), cells)


def _data_table(data: Mapping[str, Any]) -> dict[str, Any]:
    """Splits down, their counts across; `rest`: what belongs to no split."""
    splits = {name: dict(_facts(counts)) for name, counts in data.items() if isinstance(counts, Mapping)}
    columns = list(dict.fromkeys(name for counts in splits.values() for name in counts))
    return {
        "columns": columns,
        "rows": [(name, [counts.get(column, "–") for column in columns]) for name, counts in splits.items()],
        "rest": list(_facts({k: v for k, v in data.items() if not isinstance(v, Mapping)})),
    }


def _facts(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields names and values of a possibly nested mapping, as people write them."""
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
