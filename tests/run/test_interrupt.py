"""Signals: the first is noted, a second Ctrl-C ends the block at once, and a main thread that hangs is ended."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path

import pytest
from helpers.forked import Forked

from jaxlm.errors import Interrupted
from jaxlm.run import interrupt
from jaxlm.run.interrupt import watch_signals


def test_the_first_is_noted_and_the_second_says_what_is_saved():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with (
        pytest.raises(Interrupted, match="^SIGTERM twice: step 3 is saved$"),
        watch_signals(lambda: "step 3 is saved") as flag,
    ):
        assert flag.after_step() is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.after_step() == "SIGTERM"
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler may repeat it
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
        pytest.fail("not interrupted")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def hang(ready: Path, grace: float) -> None:
    """Waits in C for a lock that this thread holds already, which no Python handler interrupts."""
    interrupt.GRACE, interrupt.HASTE = grace, 0.3
    with watch_signals(lambda: "step 3 is saved"):
        ready.write_text("")
        mutex, libc = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        libc.pthread_mutex_lock(mutex)
        libc.pthread_mutex_lock(mutex)


@pytest.mark.parametrize(("numbers", "grace"), [([signal.SIGTERM], 0.3), ([signal.SIGINT] * 2, 600.0)])
def test_a_main_thread_that_hangs_is_ended(tmp_path, numbers, grace):
    process = Forked(tmp_path / "log", hang, tmp_path / "ready", grace)
    process.wait_for((tmp_path / "ready").exists)
    time.sleep(0.2)
    for number in numbers:
        process.send(number)
        time.sleep(0.05)
    status, output = process.finish()
    assert status == 3
    assert output == f"interrupted: {numbers[0].name}: the run does not answer, and is ended; step 3 is saved\n"
