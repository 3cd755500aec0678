"""Connects the processes of a job: a meeting in plain TCP, whose errors name their cause, then `jax.distributed`."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxlm.errors import RunFailure, UserError
from jaxlm.parallel import processes
from jaxlm.parallel.cluster import Cluster
from jaxlm.parallel.reception import Place
from jaxlm.parallel.rendezvous import meet

log = logging.getLogger("jaxlm")


@dataclass(frozen=True)
class Patience:
    """How long the processes of a job wait for each other, in seconds."""

    connect: int = 60
    """For all to be there, at the start."""
    heartbeat: int = 100
    """Without a sign of life, after which a process counts as dead and the others are stopped. The sign comes from a
    thread of its own, which neither compiling nor Python delays; a machine that swaps does."""


def patience(connect: int | None, heartbeat: int | None, environ: Mapping[str, str] = os.environ) -> Patience:
    """Returns the times that the options give, else JAXLM_CONNECT_TIMEOUT and JAXLM_HEARTBEAT, else the defaults.

    Raises:
      UserError: a value that is no whole number above 0.
    """

    def seconds(given: int | None, name: str, variable: str, default: int) -> int:
        text = environ.get(variable, str(default)) if given is None else str(given)
        if not re.fullmatch(r"0*[1-9]\d{0,6}", text):
            raise UserError(f"{name} (or {variable}): expected a number of seconds, 1 or more; found {text!r}")
        return int(text)

    return Patience(
        seconds(connect, "--connect-timeout", "JAXLM_CONNECT_TIMEOUT", Patience.connect),
        seconds(heartbeat, "--heartbeat", "JAXLM_HEARTBEAT", Patience.heartbeat),
    )


def connect(cluster: Cluster, times: Patience, *, stop_steps: bool) -> None:
    """Connects this process with the others; before JAX is used for anything else.

    Args:
      stop_steps: SIGTERM is left to `processes.is_stop_step`, instead of ending the process.
    Raises:
      UserError: an unknown host, a port in use, or processes that contradict each other.
      RunFailure: processes are missing, or cannot be reached.
    """
    arguments = _resolve(cluster, times)
    if arguments is not None:
        host, _, port = arguments["coordinator_address"].rpartition(":")
        place = Place(host.strip("[]"), int(port), arguments["process_id"], arguments["num_processes"])
        processes.set_hosts(meet(place, times.connect))
    jax.config.update("jax_enable_preemption_service", stop_steps)
    try:
        with _quiet():
            jax.distributed.initialize(
                **(cluster.arguments if arguments is None else arguments),
                heartbeat_timeout_seconds=times.heartbeat,
                initialization_timeout=times.connect,
            )
    except (RuntimeError, ValueError, OSError) as error:
        raise RunFailure(
            f"{cluster.name}: the processes could not be connected within {times.connect} s "
            f"({processes.one_line(error)}). Check that all were started, that the first one listens at that address "
            "and that no firewall stands between, or wait longer with --connect-timeout SECONDS"
        ) from error
    log.info("%s: process %d of %d", cluster.name, jax.process_index(), jax.process_count())


def _resolve(cluster: Cluster, times: Patience) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize` with address and numbers, where JAX detects them itself; None where
    this release of JAX does not tell them."""
    if "coordinator_address" in cluster.arguments:
        return dict(cluster.arguments)
    try:
        from jax._src.clusters import ClusterEnv

        detect = ClusterEnv.auto_detect_unset_distributed_params
    except (ImportError, AttributeError):
        return None
    try:
        found = detect(None, None, None, cluster.arguments.get("local_device_ids"), None, times.connect)
        address, number, index, devices = found
    except (TypeError, ValueError):
        return None
    except (RuntimeError, OSError, KeyError) as error:
        raise RunFailure(f"{cluster.name}: the other processes were not found: {processes.one_line(error)}") from error
    if not address or number is None or index is None:
        return None
    return {
        "coordinator_address": address, "num_processes": number, "process_id": index, "local_device_ids": devices,
        "cluster_detection_method": "deactivate",
    }  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what C++ writes to standard error while processes connect out of sight: the error says it in words."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
