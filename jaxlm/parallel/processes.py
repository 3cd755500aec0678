"""Several processes, one to a host, that work as one: agreeing on errors, and stopping together.

The engine is `jax.distributed` (`parallel.connect` connects it); here is what a program around it owes its user:

- Before the first step, processes fail one by one: a file is missing on one host, a directory cannot be written on
  another. At `all_gather_json` and the functions built on it, all processes learn of the failure and stop with the
  same message.
- After that (`collective_section`) they wait for each other inside collectives and cannot exchange messages. A process
  that fails ends at once; the others notice a broken connection, or that its heartbeat is missing. `lost_peer`
  recognizes that.

With one process, nothing here does anything.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint.multihost import get_barrier_sync_fn

from jaxlm.errors import Interrupted, RunFailure, UserError

T = TypeVar("T")
log = logging.getLogger("jaxlm")

_PATIENCE = 7 * 24 * 3600  # seconds
_LINGER = 5.0  # seconds for which the first process, which the others stand in contact with, outlives its own failure
_LOST = (
    "Gloo", "Connection reset", "Connection closed", "Socket closed", "coordination service", "UNAVAILABLE", "Barrier",
    "barrier", "heartbeat", "NCCL", "DEADLINE_EXCEEDED", "peer",
)  # fmt: skip
_ERRORS = {kind.__name__: kind for kind in (UserError, RunFailure, Interrupted)}


@dataclass
class _PeerState:
    """What the others know of this process."""

    in_collectives: bool = False
    told: bool = False
    steps: int = 0
    exchanges: int = 0
    hosts: tuple[int, ...] = ()


_peers = _PeerState()


def is_multiprocess() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def process_index() -> int:
    """Number of this process, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return process_index() == 0


def set_hosts(identities: Sequence[str]) -> None:
    """Notes which processes share a host, from what identifies the host of each."""
    order = list(dict.fromkeys(identities))
    _peers.hosts = tuple(order.index(identity) for identity in identities)


def host_of(process: int) -> int:
    """Returns the number of a process's host, from 0; that of the process where hosts are not known."""
    return _peers.hosts[process] if process < len(_peers.hosts) else process


def all_gather_json(value: Any = None, error: Exception | None = None) -> list[Any]:
    """Hands a JSON value to all processes and returns everyone's, in order; all processes have to call it.

    Calls of all functions below match each other, whichever a process is at, so that an error is heard at once.

    Args:
      error: what this process failed by; it is raised here and, as the first that failed tells it, by the others.
    """
    if not is_multiprocess():
        if error is not None:
            raise error
        return [value]
    failed = None if error is None else {"kind": type(error).__name__, "text": str(error) or type(error).__name__}
    message = json.dumps({"value": value, "failed": failed}).encode()
    _peers.told = error is not None
    # Others may be hours behind, tokenizing a corpus: a barrier waits for them, where a collective would time out.
    _peers.exchanges += 1
    barrier = get_barrier_sync_fn()
    assert barrier is not None
    barrier(key=f"jaxlm.exchange.{_peers.exchanges}", timeout_ms=_PATIENCE * 1000)
    sizes = multihost_utils.process_allgather(np.asarray([len(message)], np.int32))
    room = 1 << max(8, int(np.max(sizes) - 1).bit_length())  # few shapes are compiled
    padded = np.zeros(room, np.uint8)
    padded[: len(message)] = np.frombuffer(message, np.uint8)
    gathered = multihost_utils.process_allgather(padded).reshape(len(sizes), room)
    answers = [json.loads(row[: int(size)].tobytes()) for row, size in zip(gathered, sizes.ravel(), strict=True)]
    if error is not None:
        raise error
    for number, answer in enumerate(answers):
        if answer["failed"] is not None:
            _peers.told = True
            kind = _ERRORS.get(answer["failed"]["kind"], RunFailure)
            raise kind(f"process {number}: {answer['failed']['text']}")
    return [answer["value"] for answer in answers]


def broadcast_from_first(make: Callable[[], T]) -> T:
    """What the first process makes, a JSON value, on all of them."""
    if not is_multiprocess():
        return make()
    value = None
    if is_first():
        try:
            value = make()
        except Exception as error:
            announce_error(error)
            raise
    return all_gather_json(value)[0]


def first_then_others(make: Callable[[], T]) -> T:
    """Calls `make` on the first process and then, when that is done, on the others, which find what it has written."""
    if not is_multiprocess():
        return make()
    if not is_first():
        all_gather_json()
        return make()
    try:
        made = make()
    except Exception as error:
        announce_error(error)
        raise
    all_gather_json()
    return made


def assert_same(what: str, value: Callable[[], str | Mapping[str, Any]]) -> None:
    """Raises UserError, on all processes, where `value()` is not the same on all of them.

    Args:
      value: a text, or JSON values by key; the error then names the keys that differ.
    """
    if not is_multiprocess():
        return
    mine = value()
    text = mine if isinstance(mine, str) else json.dumps(mine, sort_keys=True)
    digests = all_gather_json(hashlib.sha256(text.encode()).hexdigest())
    different = [number for number, digest in enumerate(digests) if digest != digests[0]]
    if not different:
        return
    keys = "" if isinstance(mine, str) else _differences(all_gather_json(mine), different[0])
    listed = ", ".join(map(str, different[:8]))
    _peers.told = True  # as all of them find out here
    raise UserError(
        f"{what} differ between processes: those of process {listed} are not those of process 0{keys}. Start all hosts "
        "with the same command, configuration, code and data"
    )


def _differences(values: Sequence[Mapping[str, Any]], other: int) -> str:
    """What one process has otherwise than the first."""
    first, second = values[0], values[other]
    keys = [key for key in {**first, **second} if first.get(key) != second.get(key)]
    shown = [f"{key}: {first.get(key)!r} in process 0, {second.get(key)!r} in process {other}" for key in keys[:5]]
    return f" ({'; '.join(shown)}{f'; and {len(keys) - 5} more' if len(keys) > 5 else ''})"


def announce_error(error: Exception) -> None:
    """Lets the others hear of an error, where they still can and have not yet."""
    if is_multiprocess() and not _peers.in_collectives and not _peers.told:
        with contextlib.suppress(type(error)):
            all_gather_json(error=error)


@contextlib.contextmanager
def collective_section() -> Iterator[None]:
    """The time in which all processes compute together. It ends, without an error, when all have reached its end."""
    all_gather_json()
    _peers.in_collectives = True
    yield
    all_gather_json()
    _peers.in_collectives = False


def is_stop_step() -> bool:
    """Whether a signal to one of the processes ends the run after this step; all processes ask after every step."""
    _peers.steps += 1
    return multihost_utils.reached_preemption_sync_point(_peers.steps)


@contextlib.contextmanager
def error_boundary(advice: str) -> Iterator[None]:
    """Error boundary around multi-process work: announces this process's errors to the others and explains theirs.

    Args:
      advice: what to do after another process has failed.
    Raises:
      UserError, Interrupted: as they came.
      RunFailure: whatever else it was; the traceback of what was not foreseen is printed.
    """
    try:
        yield
    except Exception as error:
        if (lost := lost_peer(error)) is not None:
            raise RunFailure(f"{lost}. {advice}") from error
        announce_error(error)
        if isinstance(error, Interrupted):
            _peers.told = True  # in the loop, all are interrupted after the same step
        if type(error).__name__ not in _ERRORS:
            traceback.print_exc()
            raise RunFailure(f"process {process_index()}: {type(error).__name__}: {one_line(error)}") from error
        raise


def lost_peer(error: BaseException) -> RunFailure | None:
    """What to tell the user if `error` means that another process is gone; None if it means something else."""
    if not is_multiprocess() or not isinstance(error, (ValueError, RuntimeError)):
        return None
    if not any(sign in str(error) for sign in _LOST):
        return None
    return RunFailure(
        f"process {process_index()} of {jax.process_count()}: another process has stopped, and what it printed last "
        f"says why ({one_line(error)})"
    )


def shutdown(status: int) -> int:
    """Disconnects from the other processes before this one ends; returns the exit status.

    After an error that the others were not told of, they will not answer: the process then ends here and now, without
    waiting for anything, threads that write a checkpoint included.
    """
    if not jax.distributed.is_initialized():
        return status
    if status == 0 or _peers.told:
        try:
            jax.distributed.shutdown()
            return status
        except (RuntimeError, ValueError) as error:
            log.debug("shutdown: %s", error)
    elif is_first():
        time.sleep(_LINGER)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def to_host(array: jax.Array | np.ndarray) -> np.ndarray:
    """A whole array on every process, wherever its parts lie; all processes have to call it alike."""
    if isinstance(array, jax.Array) and not (array.is_fully_addressable or array.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def one_line(error: BaseException) -> str:
    """Returns an error's message, cut where it is long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} ..."
