"""The one train loop: steps, log lines, evaluations, checkpoints, early stopping, resumption."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.config.loading import dump_config
from jaxlm.config.schema import Config
from jaxlm.errors import Interrupted
from jaxlm.inference.samples import Sampler
from jaxlm.inference.trained import make_evaluator
from jaxlm.parallel import processes
from jaxlm.report.format import format_counts
from jaxlm.run.interrupt import watch_signals
from jaxlm.run.pace import Pace
from jaxlm.run.run_dir import CONFIG, REPORT, SUMMARY, RunDir
from jaxlm.run.step_watch import StepWatch
from jaxlm.run.trackers import check_trackers, open_trackers
from jaxlm.run.tracking import Tracker
from jaxlm.setup.commits import pin_commits
from jaxlm.setup.setup import make_setup
from jaxlm.tasks.records import Metric
from jaxlm.training.checkpoint import Checkpointer
from jaxlm.training.choices import describe_choices
from jaxlm.training.finish import finish_run
from jaxlm.training.optimizer import describe_rates
from jaxlm.training.plan import Plan, make_plan
from jaxlm.training.precompile import Precompiler
from jaxlm.training.progress import Progress
from jaxlm.training.run import (
    AfterEvaluation,
    Evaluated,
    Run,
    best_state,
    check_validation,
    ignore,
    select_metric,
    start,
)
from jaxlm.training.settings import check_same_settings, describe_saved, flatten, how_to_resume
from jaxlm.training.state import TrainState
from jaxlm.training.step_folders import committed_steps

log = logging.getLogger("jaxlm")


def run_training(
    config: Config,
    *,
    command: str = "",
    reference_scores: Mapping[str, dict[str, float]] | None = None,
    after_evaluation: AfterEvaluation = ignore,
) -> dict[str, Any]:
    """Runs or resumes a run of pretraining or fine-tuning; returns its summary, as it is if the run is finished.

    Args:
      command: what the user typed, for the summary.
      reference_scores: scores of other systems on the same data, by name, for the summary and the report.
      after_evaluation: hears of each evaluation during training.

    Raises:
      UserError, RunFailure: see the message; what was saved stays.
      Interrupted: a signal came; the state, or the part of the corpus that is tokenized, is saved.
    """
    check_trackers(config.logging.trackers)
    directory = RunDir(Path(config.logging.directory).absolute() / config.name)
    check_validation(config)
    config = pin_commits(config, directory.config)
    with ExitStack() as held, watch_signals(lambda: describe_saved(directory.checkpoints, config)) as interrupt:
        processes.assert_same("the settings", lambda: flatten(config.model_dump(mode="json")))
        if (summary := processes.broadcast_from_first(lambda: _open(config, held))) is not None:
            log.info("%s is finished; start over with train.restart=true, or choose another name", directory.path)
            return summary
        setup = make_setup(config, tokenizer_cache=directory.path / "tokenizer", stop=lambda: interrupt.received)
        plan, metric = make_plan(setup), select_metric(setup)
        processes.assert_same("the training data, or the versions of packages,", lambda: plan.loader.fingerprint)
        processes.broadcast_from_first(lambda: directory.write_text(CONFIG, dump_config(config)))
        with processes.collective_section(), _checkpointer(directory, config, metric) as checkpoints:
            state, progress, initialized = start(plan, checkpoints, metric)
            _announce(plan, metric, progress.step)
            with _tracker(directory, plan, progress.step) as tracker:
                evaluator, sampler = make_evaluator(setup), Sampler.from_setup(setup)
                parts = plan, directory, checkpoints, evaluator, tracker, interrupt, metric, initialized, sampler
                run = Run(*parts, after_evaluation)
                state, best_step = best_state(run, loop(run, state, progress), progress)
                summary = finish_run(run, state, progress, best_step, command, reference_scores or {})
        log.info("%s: open %s; the model in HF format is %s", directory.path, REPORT, directory.model)
        return summary


def loop(run: Run, state: TrainState, progress: Progress) -> TrainState:
    """Trains until the last step, or until early stopping; returns the state then, and updates `progress`.

    Args:
      state: donated.

    Raises:
      RunFailure: the loss or a parameter is not finite, or a checkpoint cannot be saved.
      Interrupted: a signal came; the state is saved.
    """
    plan, meter, cadence = run.plan, progress.meter, Cadence.from_plan(run.plan)
    watch = StepWatch(plan.setup.config.train.hang_factor)
    meter.clock = watch.clock
    with watch, Precompiler(plan) as programs, Pace(progress.step, watch.clock) as pace:
        while progress.step < plan.total_steps and not progress.best.stopped:
            watch.begin(progress.step + 1)
            batch = next(plan.loader)
            if compiles := meter.compiles(batch):
                watch.pause()
                log.info("compiling the step (shape %s) ...", " x ".join(map(str, batch["tokens"].shape)))
            with meter.time_step(batch), pace.skip() if compiles else nullcontext():
                if compiles:
                    programs.wait(batch)
                state, metrics = plan.step(state, plan.to_device(batch))
                meter.add(metrics)
                step = progress.step = progress.step + 1
                stop, due = run.interrupt.after_step(), cadence.due(step)
                if any(due) or stop:
                    meter.wait()
            watch.end()
            if compiles:
                log.info("compiled, and the first step of this shape done, in %.1f s", meter.last_compile_seconds)
                programs.begin(batch)
            if any(due) or stop:
                meter.sum_counts(plan.setup.rules)
            run.tracker.set_progress(step)
            if (problem := meter.divergence()) is not None:
                ago, examples = meter.culprit()
                raise run.diverged(step - ago, problem, examples)
            if due.log:
                values = meter.flush(float(np.asarray(plan.schedule(step - 1))))
                run.tracker.log_train(step, values, seconds_left=pace.seconds_left(step, plan.total_steps))
            scores, best = _evaluate(run, state, progress) if due.evaluate else ({}, False)
            if due.save or best or progress.best.stopped or stop:
                run.save(state, progress, scores, wait=stop is not None)
            if due.evaluate and run.metric is not None:
                number, value = -(-step // cadence.evaluate), scores.get(run.metric.name)
                run.after_evaluation(Evaluated(number, run.metric.name, value, run.metric.higher_is_better))
            if stop and step < plan.total_steps:
                advice = how_to_resume(plan.setup.config)
                raise Interrupted(f"{stop}: saved at step {step} of {plan.total_steps}; {advice}")
    if progress.best.stopped:
        _announce_early_stopping(run, progress)
    return state


def _announce_early_stopping(run: Run, progress: Progress) -> None:
    rule, best = run.plan.setup.config.train.early_stopping, progress.best
    assert rule is not None and run.metric is not None
    log.info(
        "early stopping ends the run after step %d of %d: %s has not improved%s in %d evaluations since step %d (%s)",
        progress.step, run.plan.total_steps, run.metric.name, f" by {rule.min_delta:g}" if rule.min_delta else "",
        best.evaluations_since, best.step, "never defined" if best.value is None else f"{best.value:.4f}",
    )  # fmt: skip


def _evaluate(run: Run, state: TrainState, progress: Progress) -> tuple[dict[str, float], bool]:
    """Returns the scores of the validation split, empty without one, and whether they are the best."""
    if run.metric is None:
        return {}, False
    evaluation = run.evaluate(state, "validation", run.plan.setup.task.written_rows)
    scores = evaluation.scores
    run.tracker.log_evaluation(progress.step, "validation", scores)
    rule, value = run.plan.setup.config.train.early_stopping, scores.get(run.metric.name)
    if (value is None or np.isnan(value)) and not progress.best.undefined:
        log.warning(
            "%s is not defined on the validation split at step %d (a single class, say): it chooses no checkpoint and "
            "stops no run; another one can be named in train.metric", run.metric.name, progress.step
        )  # fmt: skip
    best = progress.best.update(progress.step, value, rule)
    run.sample(state, progress.step, evaluation.answers)
    return scores, best


class Due(NamedTuple):
    """What follows a step."""

    log: bool
    evaluate: bool
    save: bool


class Cadence(NamedTuple):
    """Steps between log lines, evaluations and saves; all three follow the last step, too."""

    log: int
    evaluate: int
    save: int
    total_steps: int

    @classmethod
    def from_plan(cls, plan: Plan) -> Cadence:
        config = plan.setup.config
        epoch = plan.loader.steps_per_epoch or plan.total_steps
        evaluate = epoch if config.train.eval_every == "epoch" else int(config.train.eval_every)
        return cls(config.logging.every, evaluate, config.checkpoint.every or evaluate, plan.total_steps)

    def due(self, step: int) -> Due:
        last = step == self.total_steps
        return Due(*(last or step % every == 0 for every in (self.log, self.evaluate, self.save)))


def _open(config: Config, held: ExitStack) -> dict[str, Any] | None:
    """Makes and locks the run directory, for as long as `held` is open; returns the summary of a finished run."""
    directory = RunDir(Path(config.logging.directory).absolute() / config.name)
    steps = committed_steps(directory.checkpoints)
    if config.train.restart and steps and not directory.finished:
        log.warning(
            "train.restart=true: the checkpoint of step %d is moved aside with its run; with train.restart=false, the "
            "same command would have resumed it",
            steps[-1],
        )
    directory = RunDir.open(directory.path.parent, config.name, restart=config.train.restart)
    held.enter_context(directory.lock())
    check_same_settings(directory, config)
    return directory.read_json(SUMMARY) if directory.finished else None


def _checkpointer(directory: RunDir, config: Config, metric: Metric | None) -> Checkpointer:
    return Checkpointer(
        directory.checkpoints,
        keep=config.checkpoint.keep,
        metric=None if metric is None else metric.name,
        higher_is_better=metric is None or metric.higher_is_better,
    )


def _tracker(directory: RunDir, plan: Plan, step: int) -> Tracker:
    config = plan.setup.config
    trackers = None
    if processes.is_first() and config.logging.trackers:
        settings = flatten(config.model_dump(mode="json"))
        trackers = open_trackers(config.logging.trackers, directory.path, config.logging.project, settings)
    return Tracker(
        directory.path,
        resume_step=step,
        total_steps=plan.total_steps,
        headlines=[metric.name for metric in plan.setup.task.metrics if metric.headline],
        tensorboard=config.logging.tensorboard,
        trackers=trackers,
        enabled=processes.is_first(),
    )


def _announce(plan: Plan, metric: Metric | None, step: int) -> None:
    """Logs what is learned, from how much, the size of the run, where it starts, and what it chose by itself."""
    setup, devices = plan.setup, jax.devices()
    counts = "; ".join(f"{split}: {format_counts(dataset.describe())}" for split, dataset in setup.datasets.items())
    log.info("task.kind=%s; %s", setup.config.task.kind, counts)
    trained, frozen = setup.split.count(setup.shapes)
    log.info(
        "%s: %d parameters%s, %d steps%s, %d %s device(s), %s",
        setup.config.name,
        setup.model.num_parameters,
        f" of which {trained} are trained" if frozen else "",
        plan.total_steps,
        f", resumed at {step}" if step else "",
        len(devices),
        devices[0].platform,
        setup.rules.description,
    )
    if setup.steps_round_products:
        log.info(
            "model.matmul=auto: training steps round the operands of dense maps to bfloat16, for which this CPU has "
            "instructions, and add up in float32; model.matmul=float32 does not"
        )
    if rates := describe_rates(setup):
        log.info("learning rates by layer: %s", rates)
    for line in describe_choices(plan, metric):
        log.info("%s", line)
