"""The console that progress and log messages share, the set-up of logging, and text that is safe on a terminal."""

from __future__ import annotations

import logging
import re
import sys
from functools import lru_cache

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Returns text that is safe on a terminal: control characters, marks of writing direction and lone surrogates are
    written as `\\u001b`, as JSON would; line feeds and tabs stay."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


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

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        return f"{record.asctime} {self._prefix}{level}{record.message}"
