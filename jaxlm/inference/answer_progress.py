"""How far `jaxlm predict` is: a line on a terminal, now and then one in a log, and how many rows were written."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from jaxlm.console import stderr_console

log = logging.getLogger("jaxlm")

EVERY = 60.0
"""Seconds between lines where standard error is no terminal."""


def counted(answers: Iterable[Mapping[str, Any]], output: str, console: Console | None = None) -> Iterator[Any]:
    """Passes answers on, and says on standard error how many there are: while they come, and at the end.

    Args:
      answers: rows with `prediction` or `error`.
      output: where they are written; "-" is standard output.
      console: absent: standard error.
    """
    console = console or stderr_console()
    # Rows on the same terminal show by themselves how far they are.
    shown = console.is_terminal and not (output == "-" and sys.stdout.isatty())
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.completed:,} rows"), TextColumn("{task.fields[speed]}"), TimeElapsedColumn(),
        console=console, transient=True, refresh_per_second=4, redirect_stdout=False, disable=not shown,
    )  # fmt: skip
    count = errors = 0
    start = said = time.monotonic()
    with bar:
        task = bar.add_task("", total=None, speed="")
        for answer in answers:
            count += 1
            errors += "error" in answer
            now = time.monotonic()
            if now - said >= (0.25 if shown else EVERY):
                said, speed = now, count / (now - start)
                if shown:
                    bar.update(task, completed=count, speed=f"{speed:,.0f}/s")
                else:
                    log.info("%d rows answered, %.0f/s", count, speed)
            yield answer
    where = "standard output" if output == "-" else output
    log.info(
        "wrote %d row%s to %s%s", count, "" if count == 1 else "s", where,
        f", {errors} of them with an `error`" if errors else "",
    )  # fmt: skip
