"""Detects whether this process is one of several: from options, environment variables, SLURM and Cloud TPU.

Nothing here imports JAX, because the answer decides how JAX is started.
"""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.errors import UserError


@dataclass(frozen=True)
class Cluster:
    """A job of several processes, as one of them sees it."""

    name: str
    """For messages."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for `jax.distributed.initialize`; JAX detects those that are missing."""


def detect_cluster(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """Returns the job that this process belongs to; None if it runs alone.

    The environment variables JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (in an indexed Job of
    Kubernetes, JOB_COMPLETION_INDEX) replace arguments that are not given. Without any of these, SLURM and Cloud TPU
    are detected.

    Args:
      coordinator: HOST:PORT at which the first process listens.
      num_processes: number of processes of the job.
      process_id: number of this process, from 0.
      environ: the environment variables.
    Raises:
      UserError: one of the three is missing, or a value is not a number or out of range.
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
        # JAX gives each task one device; an empty list gives the only task of a host all of the host's devices.
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
    """Returns the number of hosts of this job's TPU slices, as JAX counts them; 0 without a TPU."""
    platforms = environ.get("JAX_PLATFORMS", "tpu")
    if "tpu" not in platforms or importlib.util.find_spec("libtpu") is None:
        return 0
    if not (glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or "JAX_FORCE_TPU_INIT" in environ):
        return 0
    ask = "TPU_SKIP_MDS_QUERY" not in environ
    hosts = environ.get("TPU_PROCESS_ADDRESSES", environ.get("TPU_WORKER_HOSTNAMES"))
    if hosts is None and ask:
        hosts = _tpu_metadata("worker-network-endpoints", environ)
    in_slice = hosts.count(",") + 1 if hosts else 1
    slices = environ.get("MEGASCALE_NUM_SLICES")
    if not slices and in_slice == 1 and ask:  # the only host of a slice may still have other slices
        named = re.search(r"^\s*MEGASCALE_NUM_SLICES\s*:\s*'?(\d+)", _tpu_metadata("tpu-env", environ) or "", re.M)
        slices = named[1] if named else None
    return in_slice * int(slices or 1)


def _tpu_metadata(key: str, environ: Mapping[str, str]) -> str | None:
    server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return None
