"""Errors that end a command with an exit status instead of a traceback, and hints for their messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable

Stop = Callable[[], str | None]
"""Returns the name of the signal that asks for an end, None while there is none."""


class UserError(Exception):
    """A mistake in what the user supplied (exit status 2).

    The message names the file, row, key or parameter, what was expected, and what to do.
    """


class RunFailure(Exception):
    """Something outside the user's input failed, for instance a full disk (exit status 1)."""


class Interrupted(Exception):
    """The run was stopped by a signal after its state was saved (exit status 3)."""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Returns the known name that is `name` but for case, else the one most like it; None if none is much like it."""
    names = list(known)
    same = next((other for other in names if other.lower() == name.lower()), None)
    return same or next(iter(difflib.get_close_matches(name, names, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message, `; did you mean 'x'?`, with the known name most like `name`; "" if none is."""
    match = nearest(name, known)
    return "" if match is None else f"; did you mean {match!r}?"
