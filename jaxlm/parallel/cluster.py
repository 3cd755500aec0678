"""Whether this process is one of several, and how it finds the others: by flags, the environment, SLURM, Cloud TPU.

Nothing here imports JAX: what depends on the answer comes before it.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """How a process finds the others."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Of `jax.distributed.initialize`."""


def detect_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Returns how this process finds the others; None for a process by itself.

    What is not given is looked for in JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or, in an indexed
    Job of Kubernetes, JOB_COMPLETION_INDEX); then SLURM and Cloud TPU are detected.

    Args:
      coordinator: HOST:PORT at which the first process listens.
    Raises:
      UserError: a part is missing, or a value is no number or out of range.
    """
    settings = {
        "coordinator": (coordinator, "JAX_COORDINATOR_ADDRESS"),
        "num-processes": (num_processes, "JAX_NUM_PROCESSES"),
        "process-id": (process_id, "JAX_PROCESS_ID"),
    }
    found = {name: value if value is not None else environ.get(key) for name, (value, key) in settings.items()}
    if found["process-id"] is None and found["coordinator"]:
        found["process-id"] = environ.get("JOB_COMPLETION_INDEX")
    if any(value is not None for value, _ in settings.values()) or found["num-processes"] is not None:
        return _explicit(found, settings)
    if found["coordinator"] and found["process-id"] is not None:
        return _explicit(found, settings)
    if _on_slurm(environ):
        # JAX takes one device to a task; of the only task on a host, an empty list means all that the host has.
        alone = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_TASKS_PER_NODE", "")).split("(")[0] == "1"
        return Cluster("SLURM", {"local_device_ids": []} if alone else {})
    if _num_tpu_hosts(environ) > 1:
        return Cluster("Cloud TPU")
    return None


def _explicit(found: dict[str, Any], settings: Mapping[str, tuple[Any, str]]) -> Cluster | None:
    missing = [f"--{name} or {key}" for name, (_, key) in settings.items() if found[name] in (None, "")]
    if missing:
        raise UserError(
            f"several processes: expected {' and '.join(missing)} too; give all of --coordinator HOST:PORT, "
            "--num-processes N and --process-id I (from 0), or none of them"
        )
    numbers = {}
    for name in ("num-processes", "process-id"):
        text = str(found[name])
        if not text.isdecimal():
            raise UserError(f"--{name} (or {settings[name][1]}): expected a whole number; found {text!r}")
        numbers[name] = int(text)
    count, index = numbers["num-processes"], numbers["process-id"]
    if not 0 <= index < count:
        raise UserError(f"--process-id={index}: expected 0 to {count - 1} with --num-processes={count}")
    host, _, port = str(found["coordinator"]).rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--coordinator: expected HOST:PORT; found {found['coordinator']!r}")
    if count == 1:
        return None
    arguments = {"coordinator_address": f"{host}:{port}", "num_processes": count, "process_id": index}
    return Cluster(f"coordinator {host}:{port}", {**arguments, "cluster_detection_method": "deactivate"})


def _on_slurm(environ: Mapping[str, str]) -> bool:
    names = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    return all(name in environ for name in names) and int(environ["SLURM_NTASKS"]) > 1


def _num_tpu_hosts(environ: Mapping[str, str]) -> int:
    """How many hosts share the TPU slices that this host is part of; 0 without a TPU."""
    platforms = environ.get("JAX_PLATFORMS", "tpu")
    if "tpu" not in platforms or importlib.util.find_spec("libtpu") is None:
        return 0
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or "JAX_FORCE_TPU_INIT" in environ):
        return 0
    slices = int(environ.get("MEGASCALE_NUM_SLICES", "1"))
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None and "TPU_SKIP_MDS_QUERY" not in environ:
        hosts = _tpu_metadata("worker-network-endpoints", environ)
    return slices * (hosts.count(",") + 1 if hosts else 1)


def _tpu_metadata(key: str, environ: Mapping[str, str]) -> str | None:
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return None
