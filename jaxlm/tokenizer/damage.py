"""What the libraries underneath raise over damaged tokenizer files, Rust panics included, as one line for the user."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm.errors import UserError


@contextmanager
def refused_if_damaged(where: Path | str) -> Iterator[None]:
    """Turns any error of the block into a UserError that names `where`.

    Raises:
      UserError: whatever went wrong, but for files that cannot be opened.
    """
    try:
        yield
    except (UserError, OSError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: a tokenizer file is damaged, or holds what no tokenizer has ({type(error).__name__}: {reason}); "
            "copy or download it again"
        ) from None


def is_panic(error: BaseException) -> bool:
    """Whether Rust gave up; its exception is no `Exception`."""
    return type(error).__name__ == "PanicException"


@contextmanager
def quiet_panics() -> Iterator[None]:
    """Keeps what Rust prints about a panic off standard error; anything else that was printed follows at the end."""
    try:
        kept = os.dup(2)
    except OSError:  # no standard error
        yield
        return
    with tempfile.TemporaryFile() as printed:
        os.dup2(printed.fileno(), 2)
        panicked = False
        try:
            yield
        except BaseException as error:
            panicked = is_panic(error)
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            if not panicked:
                printed.seek(0)
                _write(printed.read())


def _write(text: bytes) -> None:
    while text:
        text = text[os.write(2, text) :]
