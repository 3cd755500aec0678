"""The one train loop: steps, log lines, evaluations, checkpoints, early stopping, resumption."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.config.loading import dump_config, load_config
from jaxlm.config.schema import Config
from jaxlm.data.examples.example import Batch
from jaxlm.errors import Interrupted, UserError
from jaxlm.inference.evaluate_corpus import CorpusEvaluator
from jaxlm.inference.evaluator import Evaluator
from jaxlm.inference.samples import Sampler, save_samples
from jaxlm.metrics.classification import higher_is_better
from jaxlm.parallel import processes
from jaxlm.parallel.placement import sum_over_processes
from jaxlm.run.interrupt import Interrupt, watch_signals
from jaxlm.run.run_dir import RunDir
from jaxlm.run.tracking import Tracker
from jaxlm.setup.setup import Setup, make_setup
from jaxlm.training.checkpoint import Checkpointer
from jaxlm.training.finish import finish_run
from jaxlm.training.loaders import make_evaluator
from jaxlm.training.plan import Plan, make_plan
from jaxlm.training.progress import BestCheckpoint, Progress
from jaxlm.training.state import TrainState

log = logging.getLogger("jaxlm")

IN_FLIGHT = 2
"""Steps the device may be ahead of the host: enough to hide the loader, few enough to stop promptly."""


def run_training(
    config: Config, *, command: str = "", reference_scores: Mapping[str, dict[str, float]] | None = None
) -> dict[str, Any]:
    """Runs, resumes or reports a run of pretraining or fine-tuning; returns its summary.

    Args:
      command: what the user typed, for the summary.
      reference_scores: scores of other systems on the same data, by name, for the summary and the report.

    Raises:
      UserError, RunFailure: see the message; what was saved stays.
      Interrupted: a signal came; the state, or what is tokenised so far, is saved.
    """
    run = RunDir(Path(config.logging.directory).absolute() / config.name)
    with ExitStack() as held, watch_signals() as interrupt:

        def take() -> dict[str, Any] | None:
            """Opens the run; returns the summary of a finished one."""
            opened = RunDir.open(Path(config.logging.directory), config.name, restart=config.train.restart)
            held.enter_context(opened.lock())
            same_settings(opened, config)
            return opened.read_json("summary.json") if opened.finished else None

        processes.assert_same("the settings", lambda: dump_config(config))
        if (summary := processes.broadcast_from_first(take)) is not None:
            log.info("%s is finished; start over with train.restart=true, or choose another name", run.path)
            return summary
        setup = make_setup(config, tokenizer_cache=run.path / "tokenizer", stop=lambda: interrupt.received)
        plan = make_plan(setup)
        metric = _metric(setup)
        processes.assert_same("the training data, or the versions of packages,", lambda: plan.loader.fingerprint)
        processes.broadcast_from_first(lambda: run.write_text("config.yaml", dump_config(config)))
        with processes.collective_section(), _checkpointer(run, config, metric) as checkpoints:
            state, progress, initialised = _start(plan, checkpoints, metric)
            start = int(state.step)
            log.info(
                "%s: %d parameters, %d steps%s, %s", config.name, setup.model.num_parameters, plan.total_steps,
                f", resumed at {start}" if start else "", _devices(plan),
            )  # fmt: skip
            evaluator = make_evaluator(setup)
            with _tracker(run, plan, start) as tracker:
                sample = _sampling(run, setup, tracker)
                state = _loop(
                    plan, state, progress, checkpoints, evaluator, tracker, interrupt, initialised, metric, sample
                )
                steps, params = int(state.step), state.params
                checkpoints.wait()
                best = None if metric is None else processes.broadcast_from_first(checkpoints.best_step)
                if best not in (None, steps):
                    params = checkpoints.restore(plan.abstract_state(), best)[1].params
                return finish_run(
                    run, setup, params, steps, plan.loader.steps_per_epoch, progress, evaluator, tracker,
                    initialised, metric, command, reference_scores or {},
                )  # fmt: skip


def _checkpointer(run: RunDir, config: Config, metric: str | None) -> Checkpointer:
    return Checkpointer(
        run.checkpoints,
        keep=config.checkpoint.keep,
        metric=metric,
        higher_is_better=metric is None or higher_is_better(metric),
    )


def _tracker(run: RunDir, plan: Plan, start: int) -> Tracker:
    return Tracker(
        run.path,
        resume_step=start,
        total_steps=plan.total_steps,
        tensorboard=plan.setup.config.logging.tensorboard,
        enabled=processes.is_first(),
    )


def _sampling(run: RunDir, setup: Setup, tracker: Tracker) -> Callable[[Any, int], None]:
    """Returns what lets a generative model write, into the log and the run directory."""
    sampler = Sampler.of(setup)

    def sample(params: Any, step: int) -> None:
        if sampler is None:
            return
        written = sampler.write(params, step)
        save_samples(run, written)
        for text in written:
            tracker.log(f"sample: {text['prompt']!r} -> {text['text']!r}")

    return sample


def _devices(plan: Plan) -> str:
    return f"{jax.device_count()} {jax.devices()[0].platform} device(s), {plan.setup.rules.description}"


def same_settings(run: RunDir, config: Config) -> None:
    """Refuses to resume under settings that would change the result.

    Raises:
      UserError: names every key that differs from the run's config.yaml.
    """
    if not run.config.is_file():
        return
    old, new = (_flat(c.model_dump()) for c in (load_config(run.config), config))
    free = ("train.restart", "logging.", "checkpoint.", "mesh.", "optimizer.offload")
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and not key.startswith(free)]
    if changed:
        listed = "; ".join(f"{key}: {old.get(key)!r} then, {new.get(key)!r} now" for key in changed[:5])
        raise UserError(
            f"{run.path} was started with other settings ({listed}). Use the old ones to resume, another name=NAME, "
            "or train.restart=true to start over (the old run is moved aside)"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    dotted = f"{prefix}." if prefix else ""
    return {key: leaf for name, item in value.items() for key, leaf in _flat(item, dotted + name).items()}


def _metric(setup: Setup) -> str | None:
    """What ranks checkpoints; None without a validation split."""
    train, task = setup.config.train, setup.task
    if "validation" not in setup.splits:
        if train.early_stopping or train.metric:
            raise UserError("train.metric, train.early_stopping: expected data.validation to evaluate on")
        return None
    metric = train.metric or task.primary_metric
    if metric not in task.metric_names:
        raise UserError(f"train.metric={metric}: expected one of {', '.join(task.metric_names)}")
    return metric


def _start(plan: Plan, checkpoints: Checkpointer, metric: str | None) -> tuple[TrainState, Progress, tuple[str, ...]]:
    """The state to go on from: the newest sound checkpoint, else the first step."""
    if processes.broadcast_from_first(checkpoints.latest_step) is None:
        state, initialised = plan.init_state()
        return state, Progress(BestCheckpoint(metric is None or higher_is_better(metric))), initialised
    _, state, extra = checkpoints.restore(plan.abstract_state())
    plan.loader.set_state(extra["data"])
    return state, Progress.from_json(extra["progress"]), tuple(extra["initialised"])


def _loop(
    plan: Plan,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpointer,
    evaluator: Evaluator | CorpusEvaluator,
    tracker: Tracker,
    interrupt: Interrupt,
    initialised: tuple[str, ...],
    metric: str | None,
    sample: Callable[[Any, int], None],
) -> TrainState:
    config, setup = plan.setup.config, plan.setup
    step = int(state.step)
    every_epoch = plan.loader.steps_per_epoch or plan.total_steps
    eval_every = every_epoch if config.train.eval_every == "epoch" else int(config.train.eval_every)
    meter, clock, shapes, counts = progress.meter, _Clock(), set(), Counter()
    pending: deque[dict[str, jax.Array]] = deque()

    def collect(limit: int) -> None:
        while len(pending) > limit:
            done = jax.device_get(pending.popleft())
            meter.losses.append(float(done["loss"]))
            meter.norms.append(float(done["grad_norm"]))

    while step < plan.total_steps and not progress.best.stopped:
        batch = next(plan.loader)
        compiled = (shape := batch["tokens"].shape) in shapes
        with clock.lap(meter if compiled else None):
            state, metrics = plan.step(state, plan.to_device(batch))
            step += 1
            pending.append({"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]})
            collect(IN_FLIGHT if compiled else 0)
            last = step == plan.total_steps
            stop = interrupt.after_step()
            log_now, eval_now = step % config.logging.every == 0 or last, step % eval_every == 0 or last
            save_now = eval_now if config.checkpoint.every is None else step % config.checkpoint.every == 0 or last
            if log_now or eval_now or save_now or stop:
                collect(0)
        shapes.add(shape)
        counts.update(_count(batch, timed=compiled))
        if log_now or eval_now or save_now or stop:
            meter.add(sum_over_processes(counts, setup.rules))
            counts.clear()
        tracker.advance(step)
        meter.check(step)
        if log_now:
            tracker.train(step, meter.flush(float(np.asarray(plan.schedule(step - 1)))))
        scores, best = None, False
        if eval_now and metric is not None:
            scores = evaluator.evaluate(state.params, setup.splits["validation"]).scores
            tracker.evaluation(step, "validation", scores)
            best = progress.best.update(step, scores.get(metric), config.train.early_stopping)
            sample(state.params, step)
        if save_now or best or progress.best.stopped or stop:
            extra = {"data": plan.loader.get_state(), "progress": progress.to_json(), "initialised": initialised}
            checkpoints.save(step, state, extra, scores, wait=stop is not None)
        if stop and not last:
            raise Interrupted(f"{stop}: saved at step {step} of {plan.total_steps}; the same command resumes")
    return state


class _Clock:
    """Adds the time of training steps to a window; evaluation, saving and compilation are left out."""

    @contextmanager
    def lap(self, meter: Any) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if meter is not None:
            meter.seconds += time.perf_counter() - start


def _count(batch: Batch, *, timed: bool) -> dict[str, int]:
    """Tokens, examples and cells of this process's rows, by their names in a `Window`."""
    # Those of an encoder's and a decoder's rows.
    segments = [value for key, value in batch.items() if key.endswith("segment_ids")]
    tokens = sum(int((value > 0).sum()) for value in segments)
    whole_rows = (batch["segment_ids"] > 0).any(-1)  # in pretraining, a row is an example
    examples = int((batch["examples"] >= 0).sum() if "examples" in batch else whole_rows.sum())
    counts = {"tokens": tokens, "examples": examples, "cells": sum(math.prod(value.shape) for value in segments)}
    return counts | {"timed_tokens": tokens * timed, "timed_examples": examples * timed}
