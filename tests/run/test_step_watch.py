"""A step that does not end is noticed; steps that end, compile or belong to a suspended process are not."""

from __future__ import annotations

import queue
import subprocess
import sys
import time

import pytest

from jaxlm.run import step_watch
from jaxlm.run.step_watch import StepWatch


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(step_watch, "_TICK", 0.01)
    monkeypatch.setattr(step_watch, "FLOOR", 0.05)


@pytest.fixture
def failures():
    return queue.Queue()


def steps(watch: StepWatch, number: int, first: int = 1) -> None:
    for step in range(first, first + number):
        watch.begin(step)
        watch.end()


def test_a_step_that_does_not_end(failures):
    with StepWatch(2.0, failures.put) as watch:
        steps(watch, 6)
        watch.begin(7)
        said = failures.get(timeout=10)
    assert said.startswith("step 7 has not ended within 0 s; the median of the last ones is ")
    assert said.endswith("(train.hang_factor=2)")


def test_what_is_not_watched(failures):
    with StepWatch(2.0, failures.put) as watch:
        steps(watch, 4)
        watch.begin(5)  # too few steps for a median
        time.sleep(0.15)
        watch.end()
        watch.begin(6)
        watch.pause()  # it compiles
        time.sleep(0.15)
        watch.end()
        time.sleep(0.15)  # evaluation
    with StepWatch(None, failures.put) as watch:
        steps(watch, 6)
        watch.begin(7)
        time.sleep(0.15)
    assert failures.empty()


def test_a_slow_run_has_a_long_limit(failures):
    with StepWatch(1000.0, failures.put) as watch:
        for step in range(1, 8):
            watch.begin(step)
            time.sleep(0.005)
            watch.end()
        watch.begin(8)
        time.sleep(0.2)  # 40 times the median, and over the floor
    assert failures.empty()


def test_the_end_of_the_process():
    program = """
import threading, time
from jaxlm.run import step_watch
step_watch._TICK, step_watch.FLOOR = 0.01, 0.05
with step_watch.StepWatch(2.0) as watch:
    for step in range(1, 8):
        watch.begin(step)
        watch.end()
    watch.begin(8)
    threading.Event().wait()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "in wait" in ended.stderr and 'File "<string>", line 10 in <module>' in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("failed: step 8 has not ended within 0 s; ")
    assert ended.stderr.splitlines()[-1].endswith("The last checkpoint is intact; the same command resumes from it")
