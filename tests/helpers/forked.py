"""For tests: functions in processes of their own, forked from one that has imported jaxlm and computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["jaxlm.cli", "jaxlm.training.stages"])


class Forked:
    """A running process, on one CPU device.

    Args:
      output: file that keeps its standard output and error.
      target: function at the top of a module; its arguments follow.
    """

    def __init__(self, output: Path, target: Callable[..., Any], *arguments: Any) -> None:
        self._output = output
        self._process = _SERVER.Process(target=_run, args=(output, target, *arguments))
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; AssertionError if the process ends before that."""
        while not condition():
            assert self.running, f"ended too early: {self._output.read_text()}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self) -> tuple[int, str]:
        """Waits for the end; returns exit status and output."""
        self._process.join(300)
        assert self._process.exitcode is not None, self._output.read_text()
        return self._process.exitcode, self._output.read_text()


def jaxlm(*arguments: str) -> None:
    """The command line."""
    from jaxlm.cli import main

    sys.exit(main(arguments))


def _run(output: Path, target: Callable[..., Any], *arguments: Any) -> None:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device; read when JAX computes first
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    target(*arguments)
