"""Ctrl-C and SIGTERM as a flag that the train loop reads between steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Interrupt:
    """Which signal arrived, if any."""

    received: str | None = None


@contextmanager
def watch_signals() -> Iterator[Interrupt]:
    """Notes SIGINT and SIGTERM instead of dying; a second SIGINT raises KeyboardInterrupt at once."""
    flag = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(number: int, _frame: object) -> None:
        if flag.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.received = signal.Signals(number).name

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
