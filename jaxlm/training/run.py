"""The parts that a run's loop and its end work with, and the run's state in and out of checkpoints."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxlm.config.schema import Config
from jaxlm.errors import RunFailure, UserError, did_you_mean
from jaxlm.inference.evaluator import Evaluation, Evaluator
from jaxlm.inference.samples import Sampler, save_samples
from jaxlm.parallel import processes
from jaxlm.run.interrupt import Interrupt
from jaxlm.run.run_dir import RunDir
from jaxlm.run.tracking import Tracker
from jaxlm.setup.setup import Setup
from jaxlm.tasks.base import Task
from jaxlm.tasks.records import Answer, Metric
from jaxlm.training.checkpoint import Checkpointer
from jaxlm.training.plan import Plan
from jaxlm.training.progress import BestCheckpoint, Progress
from jaxlm.training.state import TrainState, fingerprint, saved_part

log = logging.getLogger("jaxlm")

_ROWS_SHOWN = 16
"""Most rows of a batch that a message names."""


class Evaluated(NamedTuple):
    """An evaluation of the validation split during training.

    Attributes:
      number: of the evaluation, from 1; the same after a resumption.
      value: of the metric; None where it is not defined.
    """

    number: int
    metric: str
    value: float | None
    higher_is_better: bool


AfterEvaluation = Callable[[Evaluated], None]
"""Hears of each evaluation, after its checkpoint is saved; what it raises ends the run."""


def ignore(_evaluated: Evaluated) -> None:
    """An `AfterEvaluation` that does nothing."""


@dataclass(frozen=True)
class Run:
    """The parts of one run, from its first step to its report."""

    plan: Plan
    directory: RunDir
    checkpoints: Checkpointer
    evaluator: Evaluator
    tracker: Tracker
    interrupt: Interrupt
    metric: Metric | None
    """Chooses the best checkpoint; None without a validation split."""
    initialized: tuple[str, ...]
    """Names of the parameters that were drawn at random although the run started from a checkpoint."""
    sampler: Sampler | None
    """Lets a generative model write during training."""
    after_evaluation: AfterEvaluation = ignore

    def evaluate(self, state: TrainState, split: str, written: int | None = None) -> Evaluation:
        """Scores the parameters on a split.

        Args:
          written: of a task that writes, how many rows are written; None: all.
        """
        params = self.plan.scored_params(state)
        return self.evaluator.evaluate(params, state.frozen, self.plan.setup.datasets[split], written)

    def sample(self, state: TrainState, step: int, answers: Sequence[Answer] = ()) -> None:
        """Shows what a model writes, in the log, TensorBoard and the run directory.

        Args:
          answers: of the evaluation.
        """
        if self.sampler is not None:
            written = self.sampler.write(self.plan.model_params(state), step)
        else:
            written = [{"step": step, **sample} for sample in self.plan.setup.task.samples(answers)]
        if not written:
            return
        save_samples(self.directory, written)
        self.tracker.log_samples(step, written)

    def save(self, state: TrainState, progress: Progress, scores: dict[str, float], *, wait: bool) -> None:
        """Saves a checkpoint; with `wait`, returns when it is committed."""
        extra = {
            "data": self.plan.loader.get_state(),
            "progress": progress.to_json(),
            "initialized": self.initialized,
            "held_out": self.plan.held_out,
            "frozen": fingerprint(state.frozen),
        }
        self.checkpoints.save(progress.step, saved_part(state), extra, scores, wait=wait)

    def diverged(self, step: int, problem: str, examples: np.ndarray | None) -> RunFailure:
        """Returns the error of a run whose step went wrong: what is not finite, and what can be done about it.

        Args:
          examples: of the step's batch (`EXAMPLES`), where they are known.
        """
        with contextlib.suppress(RunFailure):  # of the save that is under way
            self.checkpoints.wait()
        saved = self.checkpoints.latest_step()
        advice = "a lower optimizer.learning_rate, a higher optimizer.warmup, or model.dtype=float32"
        if saved is None:
            advice = f"nothing was saved yet, so that the same command may be given again with {advice}"
        else:
            advice = (
                f"the checkpoint of step {saved} is from before, and would lead here again. Start over with "
                f"train.restart=true, or under another name=NAME, and {advice}"
            )
        first = " Do the parameters that it starts from hold such numbers?" if step == 1 else ""
        return RunFailure(f"step {step}: {problem}{self._rows_of(examples)}; {advice}.{first}")

    def _rows_of(self, examples: np.ndarray | None) -> str:
        """In words, the training rows of a batch."""
        split = self.plan.setup.datasets["train"].examples()
        if examples is None or split is None:
            return ""
        rows = sorted({split.examples[i].row for i in examples.ravel().tolist() if i >= 0})
        numbers = [str(split.table.number(row)) for row in rows]
        more = f" and {len(numbers) - _ROWS_SHOWN} more" if len(numbers) > _ROWS_SHOWN else ""
        return f" (its rows are those of {split.table.name}: {', '.join(numbers[:_ROWS_SHOWN])}{more})"


def select_metric(setup: Setup) -> Metric | None:
    """Returns the metric that ranks checkpoints; None without a validation split.

    Raises:
      UserError: the config names a metric that the task lacks, or that nothing is evaluated for.
    """
    check_validation(setup.config)
    if "validation" not in setup.datasets:
        return None
    return named_metric(setup.task, setup.config.train.metric)


def named_metric(task: Task, name: str | None) -> Metric:
    """Returns a metric of a task by its name; None: the first. Raises UserError for one that it lacks."""
    by_name = {metric.name: metric for metric in task.metrics}
    if name is not None and name not in by_name:
        raise UserError(f"train.metric={name}: expected one of {', '.join(by_name)}{did_you_mean(name, by_name)}")
    return task.metrics[0] if name is None else by_name[name]


def check_validation(config: Config) -> None:
    """Raises UserError where a config asks for what needs a validation split, and has none."""
    train, data = config.train, config.data
    if data.validation is not None or data.fold is not None:
        return
    for key, asked in (("early_stopping", train.early_stopping), ("metric", train.metric)):
        if asked is not None:
            raise UserError(f"train.{key}: expected data.validation to evaluate on, or leave it out")


def start(plan: Plan, checkpoints: Checkpointer, metric: Metric | None) -> tuple[TrainState, Progress, tuple[str, ...]]:
    """Returns state, progress and `Run.initialized` of the newest sound checkpoint, or before the first step."""
    if processes.broadcast_from_first(checkpoints.latest_step) is None:
        state, initialized = plan.init_state()
        return state, Progress(BestCheckpoint(metric is None or metric.higher_is_better)), initialized
    state, extra = _restore(plan, checkpoints, plan.init_frozen())
    plan.loader.set_state(extra["data"])
    _check_held_out(plan, extra.get("held_out", {}))
    if extra.get("frozen", "") != fingerprint(state.frozen):
        raise UserError(
            f"model.init={plan.setup.config.model.init}: the parameters that are frozen are not those that the run "
            "began with. Bring that model back, or start over with train.restart=true"
        )
    progress = Progress.from_json(extra["progress"], int(state.step))
    if metric is not None:
        _check_best(checkpoints, progress, metric)
    return state, progress, tuple(extra["initialized"])


def best_state(run: Run, state: TrainState, progress: Progress) -> tuple[TrainState, int]:
    """Returns the state of the best checkpoint that is sound, and its step; the last, `state`, where none ranks.

    The arrays of `state` are deleted where another is returned. A best checkpoint that is damaged or gone is named in
    the log, and the next best is taken.
    """
    run.checkpoints.wait()
    if run.metric is None:
        return state, progress.step
    best = progress.best
    if best.step != progress.step:
        _check_best(run.checkpoints, progress, run.metric)
    if best.value is None or best.step == progress.step:
        return state, progress.step
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
        leaf.delete()  # a device may have no room for both
    return _restore(run.plan, run.checkpoints, state.frozen, best.step)[0], best.step


def _check_best(checkpoints: Checkpointer, progress: Progress, metric: Metric) -> None:
    """Where the best checkpoint is damaged or gone, says so, and lets the best that is left take its place."""
    best = progress.best
    step = checkpoints.best_sound_step(progress.step)
    value = None if step is None else checkpoints.metrics(step)[metric.name]
    if best.value is None or step == best.step:
        return
    lost = f"the best checkpoint, of step {best.step} ({metric.name} {best.value:.4f}), is damaged or gone"
    if step is None:
        log.warning("%s, and no other is ranked: the best is sought among those that follow, else the last", lost)
    else:
        log.warning("%s; the next best is that of step %d (%s %.4f)", lost, step, metric.name, value)
    best.step, best.value = step or 0, value


def _check_held_out(plan: Plan, saved: Mapping[str, str]) -> None:
    """Refuses other validation or test data than the run had before.

    Raises:
      UserError: names the split.
    """
    for split in sorted(saved.keys() | plan.held_out.keys()):
        if saved.get(split) == plan.held_out.get(split):
            continue
        source = getattr(plan.setup.config.data, split)
        kinds = ("path", "rows", "tfds", "builtin", "fraction", "mixture")
        name = "" if source is None else next(f"{kind}: {v}" for kind in kinds if (v := getattr(source, kind)))
        raise UserError(
            f"data.{split} ({name[:200]}): its content is not what the run has been evaluated on so far. Bring that "
            "back, or start over with train.restart=true"
        )


def _restore(
    plan: Plan, checkpoints: Checkpointer, frozen: Any, step: int | None = None
) -> tuple[TrainState, dict[str, Any]]:
    _, saved, extra = checkpoints.restore(saved_part(plan.abstract_state()), step)
    return TrainState(**saved, frozen=frozen), extra
