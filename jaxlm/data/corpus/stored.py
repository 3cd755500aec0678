"""Folders of the token cache: sealed with digests when made, verified when opened, made anew where damaged.

A folder holds `.bin` files and one JSON file, its index, with facts, the size and SHA-256 of each of them, and a
SHA-256 of itself. What was verified is remembered by size and times (`file_digests`), so that only the first opening
reads the files.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxlm.data.corpus.file_digests import Contents
from jaxlm.errors import RunFailure
from jaxlm.files import (
    explain_write_errors,
    lock_file,
    read_sealed,
    remove_folder,
    remove_left_over,
    sha256,
    write_sealed,
)

log = logging.getLogger("jaxlm")

MEMORY = "inputs.json"
"""File of the token cache that digests of files are remembered in."""
_POLL = 0.5  # seconds


def seal(index: Path, facts: dict[str, Any]) -> None:
    """Writes the index of a folder whose files are complete.

    Raises:
      OSError: it cannot be written.
    """
    files = {path.name: [path.stat().st_size, sha256(path)] for path in sorted(index.parent.glob("*.bin"))}
    write_sealed(index, {**facts, "files": files})


def check(index: Path, contents: Contents) -> tuple[dict[str, Any] | None, str | None]:
    """Returns (facts of a sound folder, None), or (None, what is wrong with it); nothing is wrong with none at all."""
    if not index.parent.exists():
        return None, None
    try:
        facts = read_sealed(index)
        files = dict(facts["files"])
    except FileNotFoundError:
        return None, f"{index.name} is missing"
    except OSError as error:
        return None, f"{index.name} cannot be read: {error.strerror or error}"
    except ValueError:
        return None, f"{index.name} is not what was written, or was written by an earlier version"
    except (KeyError, TypeError):
        return None, f"{index.name} was written by another version"
    for name, (size, digest) in files.items():
        if (problem := contents.problem(index.parent / name, size, digest)) is not None:
            return None, problem
    return facts, None


def open_or_make(
    index: Path,
    contents: Contents,
    make: Callable[[], None],
    *,
    name: str,
    what: str,
    check_facts: Callable[[dict[str, Any]], str | None] = lambda _: None,
) -> dict[str, Any]:
    """Returns the facts of a folder, made where it is missing or damaged; of several processes here, one makes it.

    Args:
      index: the folder's JSON file.
      make: puts the whole folder in place, where none is.
      name: of the corpus, for messages.
      what: what is done to it: "tokenizing".
      check_facts: returns what is wrong with facts that are as they were written.

    Raises:
      RunFailure: the folder is damaged again when it was just made, or cannot be written.
    """

    def sound() -> tuple[dict[str, Any] | None, str | None]:
        facts, problem = check(index, contents)
        if facts is not None and (problem := check_facts(facts)) is not None:
            return None, problem
        return facts, problem

    facts, _ = sound()
    if facts is None:
        with _lock(index.parent, name, what):
            facts, problem = sound()
            if facts is None:
                with explain_write_errors(index.parent):
                    if problem is not None:
                        log.warning("%s: damaged: %s; it is made anew (%s)", index.parent, problem, what)
                        remove_folder(index.parent)
                    remove_left_over(index.parent)
                    make()
                facts, problem = sound()
    contents.save()
    if facts is None:
        raise RunFailure(f"{index.parent}: {problem}, right after it was made; the disk may be failing")
    return facts


@contextlib.contextmanager
def _lock(folder: Path, name: str, what: str) -> Iterator[None]:
    """Lets one process of this machine make a folder; the others wait."""
    waiting = False

    def wait(_process: str) -> None:
        nonlocal waiting
        if not waiting:
            log.info("%s: another process is %s it; waiting for that to end", name, what)
        waiting = True
        time.sleep(_POLL)

    path, advice = folder.with_name(f".{folder.name}.lock"), f"start no second run that is {what} {name}"
    with explain_write_errors(folder), lock_file(path, on_busy=wait, without_locks=advice):
        yield
