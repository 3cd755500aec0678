"""What came of each attempt, and attempts that may neither raise what is not foreseen nor hang."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxlm.errors import Interrupted, RunFailure, UserError

LIMIT = 60
"""Seconds after which an attempt counts as hanging."""


class Hang(BaseException):
    """An attempt took longer than `LIMIT`."""


class Outcomes:
    """Counts attempts by outcome, and keeps those that went wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def add(self, what: str, outcome: str) -> None:
        if outcome != "fault":  # which `fault` counts
            self.counts[outcome] += 1

    def fault(self, what: str, why: str) -> None:
        self.counts["fault"] += 1
        self.faults.append(f"{what}: {why}")

    def summary(self) -> str:
        listed = ", ".join(f"{outcome} {count}" for outcome, count in sorted(self.counts.items()))
        return f"{self.counts.total()} attempts ({listed})"

    def attempt(self, what: str, action: Callable[[], Any]) -> tuple[Any, str | None]:
        """Returns (value, None), or (None, "refused") after a clear error; (None, "fault") after anything else."""
        try:
            with _limit():
                return action(), None
        except (UserError, RunFailure, Interrupted) as error:
            if not str(error).strip() or "Traceback" in str(error):
                self.fault(what, f"an error without words: {error!r}")
                return None, "fault"
            return None, "refused"
        except Hang:
            self.fault(what, f"no end after {LIMIT} s")
        except BaseException as error:  # also a panic of a Rust library, which is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            self.fault(what, f"{type(error).__name__}: {str(error)[:200]}")
        return None, "fault"


@contextmanager
def _limit() -> Iterator[None]:
    def end(_number: int, _frame: object) -> None:
        raise Hang

    previous = signal.signal(signal.SIGALRM, end)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


class Said(logging.Handler):
    """Collects the messages of the logger `jaxlm` while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> Said:
        logger = logging.getLogger("jaxlm")
        logger.setLevel(logging.INFO)
        logger.propagate = False
        logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("jaxlm").removeHandler(self)

    @property
    def text(self) -> str:
        return "\n".join(self.messages)
