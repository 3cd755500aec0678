"""The exceptions that the command line turns into an exit status instead of a traceback."""

from collections.abc import Callable

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
