"""The end of a run: the best checkpoint is scored on every split, exported, and written up."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxlm.hf.checkpoint import export_model
from jaxlm.inference.evaluate_corpus import CorpusEvaluator
from jaxlm.inference.evaluator import Evaluator
from jaxlm.parallel import processes
from jaxlm.report.report import write_report
from jaxlm.run.run_dir import RunDir
from jaxlm.run.tracking import Tracker
from jaxlm.setup.setup import Setup
from jaxlm.tasks.baselines import baseline_scores
from jaxlm.training.progress import Progress

PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def finish_run(
    run: RunDir,
    setup: Setup,
    params: Any,
    steps: int,
    steps_per_epoch: int | None,
    progress: Progress,
    evaluator: Evaluator | CorpusEvaluator,
    tracker: Tracker,
    initialised: Sequence[str],
    metric: str | None,
    command: str,
    reference_scores: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """Scores, exports and reports.

    Args:
      params: those of the best checkpoint, or the last without a validation split.
      reference_scores: scores of other systems on the same data.
    Returns:
      The summary, as in summary.json; written last, so that a run that has one is whole.
    """
    task = setup.task
    scores: dict[str, dict[str, float]] = {}
    for name in ("validation", "test"):
        if name not in setup.splits:
            continue
        scores[name], predictions = evaluator.evaluate(params, setup.splits[name])
        tracker.evaluation(steps, name if name == "test" else "validation (best)", scores[name])
        if predictions is not None and processes.is_first():
            run.write_text(f"predictions/{name}.jsonl", to_jsonl(predictions()))
    scored = next((name for name in ("test", "validation") if name in scores), None)
    baselines: dict[str, Any] = dict(reference_scores)
    if getattr(setup.config.task, "baselines", False) and scored is not None and processes.is_first():
        baselines |= baseline_scores(task, setup.splits["train"], setup.splits[scored], setup.config.seed)
    summary = {
        "name": setup.config.name,
        "status": "finished",
        "command": command,
        "steps": steps,
        "epochs": round(steps / steps_per_epoch, 3) if steps_per_epoch else None,
        "best_step": progress.best.step if metric is not None else None,
        "metric": metric,
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
            "new_parameters": list(initialised),
        },
        "environment": environment(setup),
    }
    export_model(run.model, setup.model, params, task.hf_config())
    if processes.is_first():
        setup.tokenizer.save(run.model)
        run.write_json("summary.json", {**summary, "status": "reporting"})
        write_report(run.path)
        run.write_json("summary.json", summary)
    return summary


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
