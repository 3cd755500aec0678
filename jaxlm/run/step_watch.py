"""Ends a run whose steps have stopped: a deadlock, a file system that does not answer, a device that is gone."""

from __future__ import annotations

import faulthandler
import logging
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from jaxlm.parallel import processes

log = logging.getLogger("jaxlm")

FLOOR = 60.0
"""Seconds that a step may always take."""
_TICK = 1.0  # seconds between two looks
_NEEDED = 5  # steps that a median is taken of, at least
_LATE = 5.0  # seconds by which a look that comes late tells that the process was suspended
_LINGER = 10.0  # seconds for which a process waits for the others to notice, too: its end would end them at once


class StepWatch:
    """Watches, from a thread of its own, that each step ends within some multiple of the median.

    Time that the whole process was suspended for (Ctrl-Z, a scheduler) does not count. In between steps, and in steps
    that compile, nothing is watched.

    Args:
      factor: a step may take this many times the median of the last ones, and `FLOOR` seconds; None: any time.
      fail: called with what happened; it ends the process.
    """

    def __init__(self, factor: float | None, fail: Callable[[str], None] | None = None) -> None:
        self._factor = factor
        self._fail = _end if fail is None else fail
        self._times: deque[float] = deque(maxlen=101)
        self._step: int | None = None
        self._began = self._waited = 0.0
        self._looked = time.monotonic(), 0.0  # the last look, and for how long the process was suspended before
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="step watch", daemon=True)

    def __enter__(self) -> StepWatch:
        self._looked = time.monotonic(), 0.0
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._step = None
        self._over.set()

    def clock(self) -> float:
        """Returns seconds, those left out for which the process was suspended."""
        (looked, suspended), now = self._looked, time.monotonic()
        return now - suspended - _beyond(now - looked)

    def begin(self, step: int) -> None:
        """A step begins, with the making of its batch."""
        self._began, self._waited, self._step = time.monotonic(), 0.0, step

    def pause(self) -> None:
        """The step that has begun is to compile: it may take any time."""
        self._step = None

    def end(self) -> None:
        """The step is over."""
        if self._step is not None:
            self._times.append(time.monotonic() - self._began)
        self._step = None

    def _watch(self) -> None:
        while not self._over.wait(_TICK):
            (looked, suspended), now = self._looked, time.monotonic()
            self._looked = now, suspended + _beyond(now - looked)
            step, times = self._step, list(self._times)
            if self._factor is None or step is None or len(times) < _NEEDED:
                continue
            self._waited += _TICK
            median = statistics.median(times)
            limit = max(FLOOR, self._factor * median)
            if self._waited > limit and self._step == step:
                self._fail(
                    f"step {step} has not ended within {limit:.0f} s; the median of the last ones is {median:.3g} s "
                    f"(train.hang_factor={self._factor:g})"
                )
                return


def _beyond(interval: float) -> float:
    """For how long the process was suspended, of an interval without a look."""
    return interval - _TICK if interval > _TICK + _LATE else 0.0


def _end(what: str) -> None:
    """Shows what every thread does, and ends this process; nothing that is saved is touched."""
    several = processes.is_multiprocess()
    place = f"process {processes.process_index()}: " if several else ""
    log.error("%s%s. What each thread was doing:", place, what)
    sys.stderr.flush()
    faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
    print(
        f"failed: {place}{what}. The last checkpoint is intact; the same command resumes from it", file=sys.stderr,
        flush=True,
    )  # fmt: skip
    if several:
        time.sleep(_LINGER)
    os._exit(1)
