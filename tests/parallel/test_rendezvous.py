"""Processes meet before JAX connects them: who is missing, what contradicts, which port is taken; threads stand in."""

from __future__ import annotations

import logging
import socket
import threading
import time

import pytest

from jaxlm.errors import RunFailure, UserError
from jaxlm.parallel import reception, rendezvous
from jaxlm.parallel.connect import Patience, patience
from jaxlm.parallel.launch import free_port
from jaxlm.parallel.reception import Place
from jaxlm.parallel.rendezvous import meet


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reception, "TELL", 0.2)
    monkeypatch.setattr(rendezvous, "TELL", 0.2)
    monkeypatch.setattr(rendezvous, "_LOG", 0.2)
    monkeypatch.setattr(rendezvous, "_RETRY", 0.05)


def meet_all(places: list[Place], timeout: float = 20.0) -> list[object]:
    """What each of the processes gets: the hosts, or an error."""
    results: list[object] = [None] * len(places)

    def one(index: int) -> None:
        try:
            results[index] = meet(places[index], timeout)
        except (UserError, RunFailure) as error:
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,), name=str(index)) for index in range(len(places))]
    for thread in reversed(threads):  # the first process last: the others wait for it
        thread.start()
    for thread in threads:
        thread.join(timeout=timeout + 15)
    return results


def places(numbers: list[int], of: int, host: str = "127.0.0.1") -> list[Place]:
    port = free_port()
    return [Place(host, port, number, of) for number in numbers]


def test_all_are_there_and_the_port_is_free_again():
    found = places([0, 1, 2], 3)
    first, *others = meet_all(found)
    assert isinstance(first, list) and len(first) == 3 and len(set(first)) == 1  # one machine
    assert others == [first, first]
    with socket.create_server(("", found[0].port)):
        pass
    assert meet(Place("127.0.0.1", free_port(), 0, 1), 5) == first[:1]


def test_a_missing_process_is_named_by_all_and_in_the_log(caplog):
    caplog.set_level(logging.INFO, logger="jaxlm")
    results = meet_all(places([0, 2], 4), timeout=1.5)
    assert all(isinstance(result, RunFailure) for result in results), results
    assert {"2 of 4 processes did not come: 1, 3" in str(result) for result in results} == {True}
    assert "waiting for 2 of 4 processes: 1, 3" in caplog.text


def test_two_processes_of_one_number():
    results = meet_all(places([0, 1, 1], 3))
    assert all(isinstance(result, UserError) and "two processes are number 1: " in str(result) for result in results)


def test_different_numbers_of_processes(monkeypatch):
    real = rendezvous._host_identity

    def slow() -> str:  # a busy machine: the first process is the last to introduce itself
        time.sleep(0.5 if threading.current_thread().name == "0" else 0)
        return real()

    monkeypatch.setattr(rendezvous, "_host_identity", slow)
    found = places([0, 1], 2)
    results = meet_all([found[0], found[1]._replace(num_processes=3)])
    for result in results:
        assert isinstance(result, UserError) and "was started as one of 3, process 0 as one of 2" in str(result)


def test_a_port_in_use():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}: port {port} is in use .* second process 0"):
            meet(Place("127.0.0.1", port, 0, 2), 5)


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b""])
def test_another_program_at_the_port(answer):
    with socket.create_server(("127.0.0.1", 0)) as other:

        def serve() -> None:
            with pytest.raises(OSError):
                while True:
                    connection = other.accept()[0]
                    connection.sendall(answer)
                    connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises((UserError, RunFailure), match=r"process 1 of 2 .*(not the first process|nothing listens)"):
            meet(Place("127.0.0.1", other.getsockname()[1], 1, 2), 1)
        other.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=5)


def test_nobody_at_the_port():
    with pytest.raises(RunFailure, match=r"process 1 of 2 .* within 1 s: nothing listens at 127.0.0.1:"):
        meet(Place("127.0.0.1", free_port(), 1, 2), 1)


@pytest.mark.parametrize("number", [0, 1])
def test_an_unknown_host(monkeypatch, number):
    def unknown(*_arguments, **_options):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_connection", unknown)
    with pytest.raises(UserError, match="the host 'no-such-box' is unknown here"):
        meet(Place("no-such-box", free_port(), number, 2), 0.5)


def test_times_by_option_environment_and_default():
    assert patience(None, None, {}) == Patience(connect=60, heartbeat=100)
    environ = {"JAXLM_CONNECT_TIMEOUT": "600", "JAXLM_HEARTBEAT": "20"}
    assert patience(None, 7, environ) == Patience(connect=600, heartbeat=7)
    with pytest.raises(UserError, match=r"--heartbeat \(or JAXLM_HEARTBEAT\): expected a number of seconds"):
        patience(None, 0, {})
    with pytest.raises(UserError, match="--connect-timeout .* found 'long'"):
        patience(None, None, {"JAXLM_CONNECT_TIMEOUT": "long"})
