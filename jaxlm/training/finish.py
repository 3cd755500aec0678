"""The end of a run: the best checkpoint is scored on every split, exported, and written up."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxlm.hf.checkpoint import export_model
from jaxlm.metrics.classification import higher_is_better
from jaxlm.parallel import processes
from jaxlm.report.report import write_report
from jaxlm.report.sections import ReportSection, write_analysis
from jaxlm.run.run_dir import ANALYSIS, SUMMARY
from jaxlm.setup.setup import Setup
from jaxlm.tasks.baselines import LabelledTexts, baseline_scores
from jaxlm.tasks.classification import Classification, Examples
from jaxlm.tasks.classification_report import Answer, classification_sections
from jaxlm.training.progress import Progress
from jaxlm.training.run import Run
from jaxlm.training.state import TrainState

PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def finish_run(
    run: Run,
    state: TrainState,
    progress: Progress,
    command: str,
    reference_scores: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """Scores, exports and reports.

    Args:
      state: that of the best checkpoint, or the last without a validation split.
      command: what the user typed.
      reference_scores: scores of other systems on the same data.
    Returns:
      The summary, as in summary.json; written last, so that a run that has one is whole.
    """
    setup, steps, steps_per_epoch = run.plan.setup, progress.step, run.plan.loader.steps_per_epoch
    directory, metric = run.directory, run.metric
    task = setup.task
    scores: dict[str, dict[str, float]] = {}
    rows: dict[str, list[dict[str, Any]]] = {}
    for name in ("validation", "test"):
        if name not in setup.splits:
            continue
        scores[name], predictions = run.evaluate(state, name)
        run.tracker.evaluation(steps, name if name == "test" else "validation (best)", scores[name])
        if predictions is not None and processes.is_first():
            rows[name] = predictions()
            directory.write_text(f"predictions/{name}.jsonl", to_jsonl(rows[name]))
    scored = next((name for name in ("test", "validation") if name in scores), None)
    baselines: dict[str, Any] = dict(reference_scores)
    if getattr(setup.config.task, "baselines", False) and scored is not None and processes.is_first():
        train, test = (_labelled_texts(task, setup.splits[name]) for name in ("train", scored))
        baselines |= baseline_scores(task.problem, task.label_names, train, test, setup.config.seed)
    names = dict.fromkeys([task.primary_metric, *(name for name in task.metric_names if "/" not in name)])
    summary = {
        "name": setup.config.name,
        "status": "finished",
        "command": command,
        "steps": steps,
        "epochs": round(steps / steps_per_epoch, 3) if steps_per_epoch else None,
        "best_step": progress.best.step if metric is not None else None,
        "metric": metric,
        "metrics": [
            {
                "name": name,
                "higher_is_better": higher_is_better(name),
                "headline": name == task.primary_metric or not name.startswith(("precision_", "recall_", "f1_micro")),
            }
            for name in names
        ],
        "analysis_split": scored,
        "scores": scores,
        "baselines": baselines,
        **task.describe(),
        "data": {name: split.describe() for name, split in setup.splits.items()},
        "cleaned": setup.cleaned,
        "throughput": progress.meter.throughput(),
        "model": {
            "family": setup.model.family.name,
            "parameters": setup.model.num_parameters,
            "init": setup.config.model.init,
            "new_parameters": list(run.initialized),
        },
        "environment": environment(setup),
    }
    export_model(directory.model, setup.model, state.params, task.hf_config())
    if processes.is_first():
        setup.tokenizer.save(directory.model)
        directory.write_json(SUMMARY, {**summary, "status": "reporting"})
        found: list[ReportSection] = []
        if isinstance(task, Classification) and scored is not None:
            answers = _answers(setup.splits[scored], rows[scored])
            found = classification_sections(task.problem, task.label_names, answers, task.text_columns)
        write_analysis(directory.path / ANALYSIS, found)
        write_report(directory.path)
        directory.write_json(SUMMARY, summary)
    return summary


def _answers(split: Examples, rows: Sequence[dict[str, Any]]) -> list[Answer]:
    labels = {example.index: example.label for example in split.examples}
    return [Answer(row, labels[i], row["prediction"]) for i, row in zip(sorted(labels), rows, strict=True)]


def _labelled_texts(task: Classification, split: Examples) -> LabelledTexts:
    labels = {example.index: int(example.label) for example in split.examples}
    texts = [" ".join(str(split.table.rows[i][column]) for column in task.text_columns) for i in labels]
    return LabelledTexts(texts, np.asarray(list(labels.values())))


def environment(setup: Setup) -> dict[str, Any]:
    """Versions, devices and mesh of this run."""
    mesh = setup.rules.mesh
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed as a package"
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape) if mesh is not None else {},
        **versions,
    }


def to_jsonl(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
