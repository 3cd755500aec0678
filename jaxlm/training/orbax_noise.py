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
    for each array, also when the checkpoints are closed; hence for the rest of the process. They print by either of
    Python's two hooks."""
    earlier, earlier_unraisable = sys.excepthook, sys.unraisablehook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not _is_of_a_closed_loop(error, trace):
            earlier(kind, error, trace)

    def unraisable_hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not _is_of_a_closed_loop(unraisable.exc_value, unraisable.exc_traceback):
            earlier_unraisable(unraisable)

    sys.excepthook, sys.unraisablehook = hook, unraisable_hook


def _is_of_a_closed_loop(error: BaseException | None, trace: TracebackType | None) -> bool:
    """Whether an event loop refused because it is closed; that is then in the debug log."""
    last = traceback.extract_tb(trace)[-1].name if trace is not None else ""
    if not isinstance(error, RuntimeError) or str(error) != "Event loop is closed" or last != "_check_closed":
        return False
    _log.debug("tensorstore: %s", error)
    return True
