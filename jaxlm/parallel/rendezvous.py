"""The processes of a job find each other before JAX connects them, and say what is wrong where they do not.

JAX's coordination service aborts a process, from C++, when another has the same number, and says nothing of who is
missing. So all processes first meet over plain TCP at the address of the coordinator: the first process listens, each
(the first included) introduces itself, and all are told who is missing, or what does not fit. When all are there, the
port is free again for JAX. Nothing here imports JAX.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Iterator

from jaxlm.errors import RunFailure, UserError
from jaxlm.parallel.reception import CHANGE, MAX_LINE, TELL, Place, Reception

log = logging.getLogger("jaxlm")

_LOG = 10.0  # seconds between two lines in the log on who is missing
_RETRY = 0.3  # seconds between two attempts to connect


def meet(place: Place, timeout: float) -> list[str]:
    """Waits until all processes are there; all of them call this.

    Args:
      timeout: seconds.
    Returns:
      What identifies the host of each process, in their order.
    Raises:
      UserError: the host is unknown, the port is in use, or two processes contradict each other.
      RunFailure: processes are missing after `timeout`.
    """
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as held:
        if place.process_id == 0:
            host = Reception(place, deadline)
            held.callback(host.close)
            host.start()
        return _introduce(place, deadline, timeout)


def _introduce(place: Place, deadline: float, timeout: float) -> list[str]:
    """Connects to the first process, says who this one is, and waits for its word."""
    me = {
        "id": place.process_id,
        "of": place.num_processes,
        "host": _host_identity(),
        "name": f"{platform.node()}, process {os.getpid()}",
        "nonce": uuid.uuid4().hex,
    }
    began = last = time.monotonic()
    said, user = "nothing was tried", False
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((place.host, place.port), timeout=min(5.0, timeout)) as connection:
                connection.sendall(json.dumps(me).encode() + b"\n")
                hosts, said = _listen(connection, place, deadline)
            if hosts is not None:
                return hosts
            user = said == _stranger(place)
        except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            said, user = f"nothing listens at {place.address}: is the first process started, with this address?", False
        except socket.gaierror as error:
            said, user = f"the host {place.host!r} is unknown here ({error.strerror})", True
        except OSError as error:
            said, user = f"{place.address} does not answer ({error})", False
        now = time.monotonic()
        if now - last >= _LOG or (last == began and now - began >= TELL):
            last = now
            log.warning("process %d of %d: %s; waiting, %.0f s left", *_numbers(place), said, deadline - now)
        time.sleep(_RETRY)
    me_of = "{} of {}".format(*_numbers(place))
    raise (UserError if user else RunFailure)(
        f"coordinator {place.address}: process {me_of} did not find the others within {timeout:.0f} s: {said}. "
        f"Check that all were started, and that no firewall stands between; {CHANGE}, or wait longer with "
        "--connect-timeout SECONDS"
    )


def _listen(connection: socket.socket, place: Place, deadline: float) -> tuple[list[str] | None, str]:
    """Reads what the first process says until all are there; returns their hosts, or None and what happened."""
    said, logged = _stranger(place), time.monotonic() - _LOG + TELL
    for line in _lines(connection, deadline):
        try:
            message = json.loads(line)
            kind = message["jaxlm"]
        except (ValueError, TypeError, KeyError):
            return None, _stranger(place)
        if kind == "go":
            return list(message["hosts"]), ""
        if kind == "no":
            raise (UserError if message["user"] else RunFailure)(message["text"])
        said = message["text"]
        if time.monotonic() - logged >= _LOG:
            logged = time.monotonic()
            log.info("process %d of %d: %s", *_numbers(place), said)
    return None, said


def _stranger(place: Place) -> str:
    return (
        f"what listens at {place.address} is not the first process of a job that waits: it is another program, or the "
        f"job is complete and another process has the number {place.process_id}"
    )


def _lines(connection: socket.socket, deadline: float) -> Iterator[bytes]:
    """Yields lines until the other side closes, or the deadline and a little more (for its last word) is over."""
    received = b""
    while (left := deadline + TELL - time.monotonic()) > 0:
        connection.settimeout(left)
        try:
            more = connection.recv(4096)
        except TimeoutError:
            return
        if not more or len(received) > MAX_LINE:
            return
        *lines, received = (received + more).split(b"\n")
        yield from lines


def _host_identity() -> str:
    """What processes of one machine have in common and others have not."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return f"{platform.node()} {file.read().strip()}"
    return platform.node()


def _numbers(place: Place) -> tuple[int, int]:
    return place.process_id, place.num_processes
