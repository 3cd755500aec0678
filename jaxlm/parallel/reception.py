"""Where the processes of a job meet: the first process listens there, collects all, and tells them how things stand.

What it says are lines of JSON, under `jaxlm`: `wait`, `go` or `no` (see `rendezvous` for who listens). Nothing here
imports JAX.
"""

from __future__ import annotations

import contextlib
import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxlm.errors import UserError

TELL = 2.0
"""Seconds between two lines on who is missing."""
MAX_LINE = 1 << 20
CHANGE = "use --coordinator HOST:PORT with the host of the first process and a free port, the same on all"


class Place(NamedTuple):
    """Where the processes of a job meet, and which of them this one is."""

    host: str
    port: int
    process_id: int
    num_processes: int

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass
class _Guest:
    connection: socket.socket
    received: bytes = b""
    who: dict[str, Any] = field(default_factory=dict)


class Reception(threading.Thread):
    """Listens at a place until all are there, or `deadline` (of `time.monotonic`) is over.

    Raises:
      UserError: the port is in use, or not to be had.
    """

    def __init__(self, place: Place, deadline: float) -> None:
        super().__init__(name="rendezvous", daemon=True)
        self._place, self._deadline = place, deadline
        self._guests: list[_Guest] = []
        self._over = threading.Event()
        self._listener = _bind(place)

    def run(self) -> None:
        with self._listener, selectors.DefaultSelector() as selector:
            self._listener.setblocking(False)
            selector.register(self._listener, selectors.EVENT_READ)
            told = time.monotonic()
            while not self._over.is_set():
                for key, _ in selector.select(0.2):
                    if key.fileobj is self._listener:
                        self._welcome(selector)
                    else:
                        self._read(key.data, selector)
                if (trouble := self._trouble()) is not None:
                    self._tell({"jaxlm": "no", "user": True, "text": trouble})
                    break
                if not (missing := self._missing()):
                    by_number = {guest.who["id"]: guest.who["host"] for guest in self._guests if guest.who}
                    self._tell({"jaxlm": "go", "hosts": [by_number[i] for i in range(self._place.num_processes)]})
                    break
                if time.monotonic() > self._deadline:
                    self._tell({"jaxlm": "no", "user": False, "text": self._give_up(missing)})
                    break
                if time.monotonic() - told >= TELL:
                    told = time.monotonic()
                    self._tell({"jaxlm": "wait", "text": self._waiting(missing)})
        self._part()

    def close(self) -> None:
        """Ends the thread, and the port is free."""
        self._over.set()
        self.join(timeout=10)

    def _welcome(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            connection.setblocking(False)
            guest = _Guest(connection)
            self._guests.append(guest)
            selector.register(connection, selectors.EVENT_READ, guest)

    def _read(self, guest: _Guest, selector: selectors.BaseSelector) -> None:
        try:
            more = guest.connection.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            more = b""
        guest.received += more
        line, end, _ = guest.received.partition(b"\n")
        if end and not guest.who:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                if (
                    isinstance(said, dict)
                    and isinstance(said.get("id"), int)
                    and {"of", "host", "nonce"} <= said.keys()
                ):
                    guest.who = said
        if not more or len(guest.received) > MAX_LINE or (end and not guest.who):  # gone, or no process of ours
            selector.unregister(guest.connection)
            guest.connection.close()
            self._guests.remove(guest)

    def _trouble(self) -> str | None:
        """What processes that are there contradict each other in; judged once the first is there to hear it, too."""
        if 0 in self._missing():
            return None
        by_number: dict[int, dict[str, Any]] = {}
        for who in (guest.who for guest in self._guests if guest.who):
            if who["of"] != self._place.num_processes:
                return (
                    f"coordinator {self._place.address}: process {who['id']} ({who['name']}) was started as one of "
                    f"{who['of']}, process 0 as one of {self._place.num_processes}; give all the same --num-processes"
                )
            other = by_number.setdefault(who["id"], who)
            if other["nonce"] != who["nonce"]:
                return (
                    f"coordinator {self._place.address}: two processes are number {who['id']}: {other['name']} and "
                    f"{who['name']}; give each a --process-id of its own, from 0 to {self._place.num_processes - 1}"
                )
        return None

    def _missing(self) -> list[int]:
        there = {guest.who["id"] for guest in self._guests if guest.who}
        return [number for number in range(self._place.num_processes) if number not in there]

    def _waiting(self, missing: Sequence[int]) -> str:
        return f"waiting for {len(missing)} of {self._place.num_processes} processes: {_listed(missing)}"

    def _give_up(self, missing: Sequence[int]) -> str:
        return (
            f"coordinator {self._place.address}: {len(missing)} of {self._place.num_processes} processes did not come: "
            f"{_listed(missing)}. Check that they were started with this address and that no firewall stands between, "
            "or wait longer with --connect-timeout SECONDS"
        )

    def _tell(self, message: dict[str, Any]) -> None:
        for guest in self._guests:
            if guest.who:
                with contextlib.suppress(OSError):
                    guest.connection.sendall(json.dumps(message).encode() + b"\n")

    def _part(self) -> None:
        """Lets the others hang up first, so that the system keeps nothing of their connections at this port."""
        until = time.monotonic() + 5
        for guest in self._guests:
            with contextlib.suppress(OSError):
                guest.connection.settimeout(max(0.1, until - time.monotonic()))
                while guest.who and guest.connection.recv(4096):
                    pass
            guest.connection.close()


def _bind(place: Place) -> socket.socket:
    """Listens at the port on all addresses of this machine, as JAX's coordinator will."""
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # a machine without IPv6
                return _server(place.port, socket.AF_INET6)
        return _server(place.port, socket.AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"coordinator {place.address}: port {place.port} is in use on this machine, by another program, an "
                f"earlier run that has not ended, or a second process 0; {CHANGE}"
            ) from error
        raise UserError(
            f"coordinator {place.address}: cannot listen at port {place.port} ({error.strerror}); {CHANGE}"
        ) from error


def _server(port: int, family: socket.AddressFamily) -> socket.socket:
    dual = family == socket.AF_INET6
    return socket.create_server(("", port), family=family, backlog=1024, dualstack_ipv6=dual)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:16])) + (f" and {len(numbers) - 16} more" if len(numbers) > 16 else "")
