"""What every function of the Python API begins and ends with: plugins, a log that is heard, errors in words."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

from jaxlm.console import setup_logging
from jaxlm.errors import UserError
from jaxlm.parallel import processes
from jaxlm.parallel.backends import explain_absent
from jaxlm.plugins import load_plugins

log = logging.getLogger("jaxlm")

_NO_NAMES: Mapping[str, str] = {}


@contextmanager
def entry(command: str, names: Mapping[str, str] = _NO_NAMES) -> Generator[None, None, None]:
    """Runs a function of the API.

    Args:
      command: the command that does the same on several processes.
      names: how errors name what was given: option of the command -> argument of the function.
    Raises:
      UserError: this is one of several processes; a backend of JAX that was asked for is not there.
    """
    if processes.is_multiprocess():
        raise UserError(
            f"this is one of several processes, which share errors and signals through the commands alone: start "
            f"`jaxlm {command}` on each (docs/guides/scaling.md)"
        )
    _be_heard()
    load_plugins()
    try:
        yield
    except UserError as error:
        error.args = (_in_python(str(error), names),)
        raise
    except (RuntimeError, AssertionError) as error:
        if (absent := explain_absent(error)) is None:
            raise
        raise UserError(absent) from error


def _in_python(message: str, names: Mapping[str, str]) -> str:
    """A message of the command line with the arguments of a function in the place of options."""
    for option, argument in names.items():
        message = re.sub(rf"(?<![\w.-]){re.escape(option)}(?![\w-])", argument, message)
    return message


def _be_heard() -> None:
    """Lets the log go to stderr, unless the program has its own way with it."""
    theirs = log.handlers or log.level != logging.NOTSET
    if not theirs and not (log.hasHandlers() and log.isEnabledFor(logging.INFO)):
        setup_logging()
