"""Moves what Orbax and TensorStore print by themselves, tracebacks of failed saves included, to the debug log."""

from __future__ import annotations

import logging
import sys
import traceback
from functools import cache
from types import TracebackType

_log = logging.getLogger(__name__)


def hold_back() -> None:
    """Begins to hold Orbax's messages back, until `release`."""
    logging.getLogger("absl").addFilter(_demote_orbax)
    _hold_closed_loops_back()


def release() -> None:
    """Lets Orbax's messages through again."""
    logging.getLogger("absl").removeFilter(_demote_orbax)


def _demote_orbax(record: logging.LogRecord) -> bool:
    """Logging filter."""
    if "orbax" not in record.pathname:
        return True
    _log.debug("orbax: %s", record.getMessage())
    return False


@cache
def _hold_closed_loops_back() -> None:
    """After a failed save, TensorStore's threads report to an event loop that Orbax has closed, and print a traceback
    for each array, also when the checkpoints are closed; hence for the rest of the process."""
    earlier = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        last = traceback.extract_tb(trace)[-1].name if trace is not None else ""
        if kind is RuntimeError and str(error) == "Event loop is closed" and last == "_check_closed":
            _log.debug("tensorstore: %s", error)
        else:
            earlier(kind, error, trace)

    sys.excepthook = hook
