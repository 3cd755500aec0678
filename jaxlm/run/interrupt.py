"""Ctrl-C and SIGTERM as a flag that the train loop reads between steps.

Of several processes, one alone may get the signal. JAX's preemption service, which takes SIGTERM there, tells the
others and chooses the step after which all end.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxlm.parallel import processes


@dataclass
class Interrupt:
    """Which signal arrived, if any."""

    received: str | None = None

    def after_step(self) -> str | None:
        """The signal that ends the run after this step, if any; all processes have to ask, after every step."""
        if not processes.is_multiprocess():
            return self.received
        return (self.received or "SIGTERM") if processes.is_stop_step() else None


@contextmanager
def watch_signals() -> Iterator[Interrupt]:
    """Notes SIGINT and SIGTERM instead of dying; a second SIGINT raises KeyboardInterrupt at once."""
    flag = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    several = processes.is_multiprocess()

    def note(number: int, _frame: object) -> None:
        if flag.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.received = signal.Signals(number).name
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    numbers = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
