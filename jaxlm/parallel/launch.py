"""Starts and watches processes: several of one command on this machine, or a child that does a command's work.

`launch` is `scripts/launch_local.py`: tests use it, and users try on one machine what will run on many hosts.
`supervise` moves a process that works with others into a child. When another process is gone, JAX's coordination
service aborts the child from a C++ thread, where no Python code can print a message; the parent prints it and returns
the exit status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO

from jaxlm.errors import UserError

_GRACE = 45.0  # seconds after the first failure until the other processes are killed
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def launch(arguments: Sequence[str], *, processes: int, devices: int = 1) -> int:
    """Runs `jaxlm ARGUMENTS` in several processes on this machine's CPU.

    Prints the output of all processes, each line after the number of its process. Forwards Ctrl-C and SIGTERM to them.
    When a process fails, the others stop by themselves or are killed after `_GRACE` seconds.

    Args:
      processes: number of processes, at least 1; a single one runs as if started without `launch`.
      devices: number of CPU devices of each process.
    Returns:
      The exit status of the first process that failed, 0 if none did.
    Raises:
      UserError: there is no command, or a number is below 1.
    """
    if processes < 1 or devices < 1:
        raise UserError(f"-n {processes} --devices-per-process {devices}: expected numbers above 0")
    if not arguments:
        raise UserError("expected a command behind the options, such as: finetune --config FILE")
    address = f"127.0.0.1:{free_port()}"
    running: list[subprocess.Popen[bytes]] = []
    readers: list[threading.Thread] = []

    def forward(number: int, _frame: object) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for index in range(processes):
            # In a process group of its own, a child does not get the terminal's Ctrl-C a second time.
            running.append(
                subprocess.Popen(
                    [sys.executable, "-m", "jaxlm", *arguments],
                    env=environment(index, processes, address, devices),
                    stdin=None if processes == 1 else subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    process_group=0,
                )
            )
        for index, process in enumerate(running):
            for source, target in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
                readers.append(threading.Thread(target=_copy, args=(source, target, f"[{index}] "), daemon=True))
                readers[-1].start()
        return _wait(running)
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
            process.wait()
        for reader in readers:
            reader.join(timeout=10)
        for number, handler in previous.items():
            signal.signal(number, handler)


def environment(index: int, processes: int, address: str, devices: int) -> dict[str, str]:
    """Returns the environment of one process: CPU devices only, and the address of the first process."""
    flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", os.environ.get("XLA_FLAGS", ""))
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
        # With asynchronous dispatch, collectives between devices of one process can deadlock on few cores.
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",
    }


def free_port() -> int:
    """Returns the number of a port of this machine at which no program listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Returns the exit status of the first process that fails, 0 if none does; kills the others after `_GRACE`."""
    first, deadline = 0, float("inf")
    while alive := [process for process in running if process.poll() is None]:
        failed = [process.returncode for process in running if process.poll()]
        if failed and not first:
            first, deadline = failed[0], time.monotonic() + _GRACE
        if time.monotonic() > deadline:
            for process in alive:
                process.kill()
        time.sleep(0.05)
    first = first or next((process.returncode for process in running if process.returncode), 0)
    return first if first >= 0 else 128 - first


def _copy(source: IO[bytes], target: IO[str], prefix: str) -> None:
    for line in source:
        with contextlib.suppress(ValueError, BrokenPipeError):  # the reader of our output is gone
            target.write(prefix + line.decode(errors="replace").rstrip("\n") + "\n")
            target.flush()


def supervise(advice: str) -> int | None:
    """Forks; the child continues, and the parent waits for it, forwards signals and explains an abort.

    Call this before any thread is started.

    Args:
      advice: what the user should do after another process has failed.
    Returns:
      None in the child; in the parent, the exit status of the child, after it has ended.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError, AttributeError):  # on Linux, the child dies with its parent
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        return None

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    # On a terminal Ctrl-C comes to both; elsewhere SIGINT is sent to the parent alone.
    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM,)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN if sys.stdin.isatty() else forward)
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if status == -signal.SIGABRT:
        print(f"failed: another process has stopped, or does not answer; what it printed last says why. {advice}",
              file=sys.stderr)  # fmt: skip
        return 1
    return status if status >= 0 else 128 - status
