"""What every function of the Python API begins and ends with: plugins, a log that is heard, errors in words."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

from jaxlm.console import setup_logging
from jaxlm.errors import UserError
from jaxlm.parallel import processes
from jaxlm.parallel.backends import explain_absent
from jaxlm.plugins import load_plugins

log = logging.getLogger("jaxlm")


@contextmanager
def entry(command: str) -> Generator[None, None, None]:
    """Runs a function of the API.

    Args:
      command: the command that does the same on several processes.
    Raises:
      UserError: this is one of several processes; a backend of JAX that was asked for is not there.
    """
    if processes.is_multiprocess():
        raise UserError(
            f"this is one of several processes, which share errors and signals through the commands alone: start "
            f"`jaxlm {command}` on each (docs/scaling.md)"
        )
    _be_heard()
    load_plugins()
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        if (absent := explain_absent(error)) is None:
            raise
        raise UserError(absent) from error


def _be_heard() -> None:
    """Lets the log go to stderr, unless the program has its own way with it."""
    theirs = log.handlers or log.level != logging.NOTSET
    if not theirs and not (log.hasHandlers() and log.isEnabledFor(logging.INFO)):
        setup_logging()
