"""Ctrl-C and SIGTERM as a flag that the train loop reads between steps.

Of several processes, one alone may get the signal. JAX's preemption service, which takes SIGTERM there, tells the
others and chooses the step after which all end.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jaxlm.errors import Interrupted
from jaxlm.parallel import processes

GRACE = 600.0
"""Seconds after a signal, or after the step that heeds it, in which the process has to end by itself."""
HASTE = 5.0
"""The same after a second Ctrl-C."""


@dataclass
class Interrupt:
    """Which signal arrived, if any."""

    received: str | None = None
    deadline: float | None = None
    """When the process is ended although the main thread hangs, in the time of `time.monotonic`."""

    def after_step(self) -> str | None:
        """The signal that ends the run after this step, if any; all processes have to ask, after every step."""
        if not processes.is_multiprocess():
            signal_name = self.received
        else:
            signal_name = (self.received or "SIGTERM") if processes.is_stop_step() else None
        if signal_name is not None and self.deadline is not None:
            self.deadline = max(self.deadline, time.monotonic() + GRACE)  # for the save
        return signal_name


@contextmanager
def watch_signals(saved: Callable[[], str]) -> Iterator[Interrupt]:
    """Notes SIGINT and SIGTERM instead of dying; a second SIGINT ends the block at once.

    A thread hears of signals also where the main thread waits for something that never comes, and ends the process
    with status 3 when its time is over.

    Args:
      saved: says what is saved, for messages.

    Raises:
      Interrupted: after a second SIGINT; of several processes, KeyboardInterrupt.
    """
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
    ear, mouth = os.pipe()
    os.set_blocking(mouth, False)
    previous = {number: signal.signal(number, note) for number in numbers}
    previous_fd = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(ear, flag, saved), name="signals", daemon=True)
    watcher.start()
    try:
        yield flag
    except KeyboardInterrupt:
        message = f"{flag.received or 'SIGINT'} twice: {saved()}"
        if several:  # which the others cannot be told of: this process ends without waiting for them
            raise KeyboardInterrupt(message) from None
        raise Interrupted(message) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous_fd)
        os.write(mouth, _END)
        watcher.join()
        os.close(ear)
        os.close(mouth)


_END = b"\0"


def _watch(ear: int, flag: Interrupt, saved: Callable[[], str]) -> None:
    """Ends the process when a signal was not heeded in time; `ear` gets the number of each signal, as a byte."""
    heard = b""
    while True:
        wait = None if flag.deadline is None else max(0.0, flag.deadline - time.monotonic())
        if not select.select([ear], [], [], wait)[0]:
            if flag.deadline is not None and time.monotonic() >= flag.deadline:
                _end_process(heard, saved)
            continue
        numbers = os.read(ear, 64)
        if _END in numbers:
            return
        heard += bytes(number for number in numbers if number in (signal.SIGINT, signal.SIGTERM))
        if heard:
            haste = heard.count(signal.SIGINT) > 1
            flag.deadline = time.monotonic() + (HASTE if haste else GRACE)


def _end_process(heard: bytes, saved: Callable[[], str]) -> None:
    name = signal.Signals(heard[0]).name

    def speak() -> None:
        print(f"interrupted: {name}: the run does not answer, and is ended; {saved()}", file=sys.stderr, flush=True)

    speaker = threading.Thread(target=speak, daemon=True)  # what it asks the disk may hang, too
    speaker.start()
    speaker.join(HASTE)
    os._exit(3)
