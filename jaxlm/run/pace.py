"""How long a run still takes, by the steps of this process; compilation comes once, and is no part of the pace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType

import jax

_COMPILING = ("/backend_compile_duration", "/jaxpr_to_mlir_module_duration")
"""Ends of the names under which JAX tells how long it compiled."""


class Pace:
    """Measures, while it is entered, the seconds a step with the evaluations and saves between steps.

    What the entering thread compiles in evaluations is left out, too.

    Args:
      step: done before.
      clock: gives seconds.
    """

    def __init__(self, step: int, clock: Callable[[], float]) -> None:
        self._first, self._clock = step, clock
        self._skipped = 0  # steps
        self._without = 0.0  # seconds
        self._inside = False

    def __enter__(self) -> Pace:
        self._thread, self._began = threading.get_ident(), self._clock()
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    @contextmanager
    def skip(self) -> Generator[None, None, None]:
        """The block is a step that compiles: neither it nor its time counts."""
        began, self._inside = self._clock(), True
        yield
        self._inside = False
        self._without += self._clock() - began
        self._skipped += 1

    def seconds_left(self, step: int, total: int) -> float | None:
        """Returns how long the steps after `step` take, up to `total`; None where all steps so far compiled."""
        done = step - self._first - self._skipped
        return None if done <= 0 else (self._clock() - self._began - self._without) / done * (total - step)

    def _hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith(_COMPILING) and not self._inside and threading.get_ident() == self._thread:
            self._without += duration_secs
