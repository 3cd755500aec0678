"""How long a run still takes is told by steps that compile nothing, whatever compiling takes."""

from __future__ import annotations

import inspect
import threading
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.parallel.sharding import Rules
from jaxlm.run import step_watch
from jaxlm.run.pace import Pace
from jaxlm.run.step_watch import StepWatch
from jaxlm.training import loop as loops
from jaxlm.training.plan import Plan
from jaxlm.training.precompile import Precompiler
from jaxlm.training.progress import BestCheckpoint, Progress

COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_what_is_no_part_of_the_pace():
    clock = Clock()
    with Pace(10, clock) as pace:
        with pace.skip():
            clock.pass_by(500)
            jax.monitoring.record_event_duration_secs(COMPILED, 400)  # within the step: once is enough
        assert pace.seconds_left(11, 20) is None
        for _ in range(3):
            clock.pass_by(2)
        assert pace.seconds_left(14, 20) == 6 * 2
        clock.pass_by(103)  # an evaluation that takes three, and compiles
        jax.monitoring.record_event_duration_secs(COMPILED, 100)
        ahead = threading.Thread(target=jax.monitoring.record_event_duration_secs, args=(COMPILED, 1000))
        ahead.start()
        ahead.join()
        assert pace.seconds_left(14, 20) == 6 * 3
    jax.monitoring.record_event_duration_secs(COMPILED, 9)
    assert pace.seconds_left(14, 20) == 6 * 3


@pytest.fixture
def steps_of_a_second(monkeypatch):
    """Lets a run of empty batches take a second a step, and a hundred where it compiles; returns what is logged."""
    clock, logged = Clock(), []
    monkeypatch.setattr(StepWatch, "clock", clock)
    monkeypatch.setattr(loops, "_evaluate", lambda *_: ({}, False))
    monkeypatch.setattr(Precompiler, "begin", lambda *_: None)
    monkeypatch.setattr(Precompiler, "wait", lambda *_: clock.pass_by(100))

    def step(state: Any, _: Any) -> tuple[Any, dict[str, jax.Array]]:
        clock.pass_by(1)
        return state, {name: jnp.float32(0) for name in ("loss", "grad_norm", "nonfinite")}

    def run(row_counts: list[int]) -> list[tuple[int, dict[str, float], float | None]]:
        batches = ({name: np.ones((rows, 8), np.int32) for name in ("tokens", "segment_ids")} for rows in row_counts)
        train = SimpleNamespace(hang_factor=None, eval_every="epoch")
        sections = {"logging": SimpleNamespace(every=2), "checkpoint": SimpleNamespace(every=None)}
        config = SimpleNamespace(train=train, **sections)
        plan = Mock(spec=Plan)
        plan.setup, plan.loader = SimpleNamespace(config=config, rules=Rules()), Loader(batches)
        plan.total_steps, plan.step, plan.schedule = len(row_counts), step, lambda _: 0.1
        plan.to_device = lambda batch: batch
        tracker = SimpleNamespace(
            set_progress=lambda _: None,
            log_train=lambda step, values, *, seconds_left: logged.append((step, values, seconds_left)),
        )
        parts = {"plan": plan, "tracker": tracker, "metric": None, "save": lambda *_, **__: None}
        stub: Any = SimpleNamespace(**parts, interrupt=SimpleNamespace(after_step=lambda: None))
        inspect.unwrap(loops.loop)(stub, stub, Progress(BestCheckpoint(True)))  # the parts are no real ones
        return logged

    return run


class Loader:
    steps_per_epoch = 100

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __next__(self) -> Any:
        return next(self._batches)


def test_speed_and_time_left_behind_new_shapes(steps_of_a_second):
    logged = steps_of_a_second([2, 3, 2, 2, 4, 2, 2, 5, 2, 2])
    assert [step for step, _, _ in logged] == [2, 4, 6, 8, 10]
    assert [left for _, _, left in logged] == [None, 6, 4, 2, 0]
    assert "tokens_per_s" not in logged[0][1]
    assert all(values["tokens_per_s"] == 2 * 8 for _, values, _ in logged[1:])


def test_a_process_that_was_suspended(monkeypatch):
    """Between two looks that are far apart, the clock stands still."""
    now = Clock()
    monkeypatch.setattr(step_watch.time, "monotonic", now)
    monkeypatch.setattr(step_watch, "_TICK", 1.0)
    watch = StepWatch(None)
    monkeypatch.setattr(watch, "_thread", SimpleNamespace(start=lambda: None))
    looks = iter([False, False, False, True])
    with watch:
        now.pass_by(4)
        assert watch.clock() == 4  # late by less than what tells anything
        monkeypatch.setattr(watch._over, "wait", lambda _: next(looks))
        watch._watch()
        now.pass_by(3600)
        assert watch.clock() == 5
        looks = iter([False, True])
        watch._watch()
        assert watch.clock() == 5
        now.pass_by(2)
        assert watch.clock() == 7
