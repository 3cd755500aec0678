"""For tests: `jaxlm` commands in processes of their own, forked from one that has imported all and computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["jaxlm.cli", "jaxlm.training.stages"])


class Command:
    """A running command on one CPU device.

    Args:
      folder: where its standard error is kept.
      arguments: of the command line.
    """

    def __init__(self, folder: Path, *arguments: Any) -> None:
        self._errors = folder / "stderr.txt"
        self._process = _SERVER.Process(target=_run, args=(self._errors, [str(a) for a in arguments]))
        self._process.start()

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    def wait_for(self, text: str, file: Path) -> None:
        """Returns when the file contains the text; AssertionError if the command ends before that."""
        while not (file.exists() and text in file.read_text()):
            assert self.running, f"ended without writing {text} to {file}: {self._errors.read_text()}"
            time.sleep(0.01)

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def finish(self) -> tuple[int, str]:
        """Waits for the end; returns exit status and standard error."""
        self._process.join(300)
        assert self._process.exitcode is not None, self._errors.read_text()
        return self._process.exitcode, self._errors.read_text()


def _run(errors: Path, arguments: list[str]) -> None:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # one device; read when JAX computes first
    descriptor = os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    from jaxlm.cli import main

    sys.exit(main(arguments))
