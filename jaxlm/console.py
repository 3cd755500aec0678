"""The console that progress and log messages share, and the set-up of logging."""

from __future__ import annotations

import logging
import sys
from functools import lru_cache

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler


@lru_cache(maxsize=1)
def stderr_console() -> Console:
    """Returns the one console that progress and log messages share, so that they never overwrite each other."""
    return Console(stderr=True)


def setup_logging(verbose: bool = False, process: int = 0) -> None:
    """Sends the logger `jaxlm` to stderr: through rich on a terminal, as plain lines into a file or pipe.

    Args:
      verbose: log debugging details.
      process: number of this process; processes other than 0 log only warnings, with their number.
    """
    console = stderr_console()
    if console.is_terminal:
        handler: logging.Handler = RichHandler(
            console=console,
            show_time=False,
            show_level=False,
            show_path=False,
            highlighter=NullHighlighter(),
            keywords=["warning:", "error:"],
        )
    else:
        handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(process))
    logger = logging.getLogger("jaxlm")
    for old in logger.handlers[:]:
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.WARNING if process else logging.INFO)
    logger.propagate = False


class _Formatter(logging.Formatter):
    """`12:34:56 message`, with the level named from warnings on."""

    def __init__(self, process: int) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")
        self._prefix = f"process {process}: " if process else ""

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{record.asctime} {self._prefix}{level}{record.message}"
