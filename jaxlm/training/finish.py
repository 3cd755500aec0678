"""The end of a run: the best checkpoint is scored on every split, exported, and written up."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxlm.files import explain_write_errors
from jaxlm.inference.output import answered, to_jsonl
from jaxlm.parallel import processes
from jaxlm.report.report import write_report
from jaxlm.report.sections import write_analysis
from jaxlm.run.run_dir import ANALYSIS, PREDICTIONS, SUMMARY
from jaxlm.setup.few_parameters import adapter_files
from jaxlm.setup.setup import Setup
from jaxlm.tasks.base import Task
from jaxlm.tasks.records import Answer
from jaxlm.training.export import export_trained
from jaxlm.training.model_card import CARD, base_of, library_of, make_card, write_card
from jaxlm.training.progress import Progress
from jaxlm.training.run import Run
from jaxlm.training.state import TrainState

log = logging.getLogger("jaxlm")

PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tokenizers", "numpy")


def finish_run(
    run: Run,
    state: TrainState,
    progress: Progress,
    best_step: int,
    command: str,
    reference_scores: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """Scores, exports and reports.

    Args:
      state: that of the best checkpoint, or the last where none is the best.
      best_step: its step.
      command: what the user typed.
      reference_scores: scores of other systems on the same data.
    Returns:
      The summary, as in summary.json; written last, so that a run that has one is whole.
    """
    setup, steps, steps_per_epoch = run.plan.setup, progress.step, run.plan.loader.steps_per_epoch
    directory, metric = run.directory, run.metric
    trained, frozen = setup.split.count(setup.shapes)
    task, datasets = setup.task, setup.datasets
    evaluations = {split: run.evaluate(state, split) for split in ("validation", "test") if split in datasets}
    if "validation" in evaluations:
        task = task.tune(evaluations["validation"].answers)
    scores = {
        split: task.scores(evaluation.sums, evaluation.answers, datasets[split])
        for split, evaluation in evaluations.items()
    }
    for split, evaluation in evaluations.items():
        run.tracker.log_evaluation(best_step, split if split == "test" else "validation (best)", scores[split])
        if evaluation.answers and processes.is_first():
            directory.write_text(
                f"{PREDICTIONS}/{split}.jsonl", "".join(to_jsonl(predictions(task, evaluation.answers)))
            )
    scored = next((split for split in ("test", "validation") if split in scores), None)
    answers = () if scored is None else evaluations[scored].answers
    remarks = [] if metric is None else [f"{scored}: {remark}" for remark in task.remarks(metric.name, answers)]
    for remark in remarks:
        log.warning("%s", remark)
    baselines: dict[str, Any] = dict(reference_scores)
    if scored is not None and processes.is_first():
        baselines |= task.baselines(datasets["train"], datasets[scored])
    summary = {
        "name": setup.config.name,
        "status": "finished",
        "command": command,
        "steps": steps,
        "epochs": round(steps / steps_per_epoch, 3) if steps_per_epoch else None,
        "best_step": best_step if metric is not None else None,
        "metric": None if metric is None else metric.name,
        "metrics": [metric._asdict() for metric in task.metrics if "/" not in metric.name],
        "analysis_split": scored,
        "scores": scores,
        "remarks": remarks,
        "signatures": {} if scored is None else task.signatures(evaluations[scored].answers),
        "baselines": baselines,
        **task.describe(),
        "data": {split: dataset.describe() for split, dataset in datasets.items()},
        "cleaned": dict(setup.cleaned),
        "throughput": progress.meter.throughput(),
        "model": {
            "family": setup.model.family.name,
            "parameters": setup.model.num_parameters,
            "trained_parameters": trained,
            "frozen_parameters": frozen,
            "init": setup.config.model.init,
            "commit": setup.config.model.commit,
            "tokenizer_commit": setup.config.model.tokenizer_commit,
            "new_parameters": list(run.initialized),
        },
        "environment": environment(setup),
    }
    files = adapter_files(setup.config.model, setup.adapters, setup.split, setup.checkpoint)
    if files is not None:
        files.write(directory.adapter, run.plan.scored_params(state))
    export_trained(directory, setup, task, run.plan.model_params(state))
    if processes.is_first():
        _write_cards(run, summary, with_adapter=files is not None)
        directory.write_json(SUMMARY, {**summary, "status": "reporting"})
        write_analysis(directory.path / ANALYSIS, task.report(answers))
        write_report(directory.path)
        directory.write_json(SUMMARY, summary)
        run.tracker.log_summary(scores)
    return summary


def _write_cards(run: Run, summary: Mapping[str, Any], *, with_adapter: bool) -> None:
    """Writes the cards of what was exported; a README.md that somebody wrote there stays."""
    setup, directory = run.plan.setup, run.directory
    config, checkpoint = setup.config, setup.checkpoint
    base = base_of(config.model.init, None if checkpoint is None else checkpoint.directory)
    folders = {directory.model: library_of(setup.model.family.name, config.task.kind)}
    for folder, library in {**folders, **({directory.adapter: "peft"} if with_adapter else {})}.items():
        with explain_write_errors(folder / CARD):
            if not write_card(folder / CARD, make_card(summary, config, base, library=library)):
                log.info("%s stays as it is; it is not what jaxlm wrote", folder / CARD)


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


def predictions(task: Task, answers: Sequence[Answer]) -> Iterator[dict[str, Any]]:
    """Yields each row with its prediction."""
    for answer in answers:
        yield answered(answer.row, prediction=task.prediction(answer.row, answer.kept))
