"""The environment of tests and of the commands that they start; imported before JAX."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path

FLAGS = {
    "xla_force_host_platform_device_count": "8",
    # Tests compile far longer than they compute: with these three in a third of the time, for slower programs.
    "xla_backend_optimization_level": "0",
    "xla_cpu_parallel_codegen_split_count": "1",
    "xla_cpu_use_fusion_emitters": "false",
    # Else devices start independent collectives in different orders, each blocking one of few threads: a deadlock, on a
    # busy machine most often. NPROC, below, cures it, too: more threads than devices.
    "xla_cpu_enable_concurrency_optimized_scheduler": "false",
    # A deadlock all the same ends the process, and with --max-worker-restart=0 the session. A busy machine does not:
    # nowhere does one device wait minutes for another.
    "xla_cpu_collective_call_terminate_timeout_seconds": "180",
}
"""Of XLA; each stands back if XLA_FLAGS has it already."""
if tuple(map(int, version("jaxlib").split(".")[:2])) >= (0, 11):
    # It is gone there, and XLA ends a process over a flag that it does not know.
    del FLAGS["xla_cpu_use_fusion_emitters"]

for name, value in FLAGS.items():
    if f"--{name}=" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{name}={value}".strip()
os.environ.setdefault("NPROC", "16")  # the threads of XLA's pool
# Commands, and the tests of one session, share what they compiled. Workers of `pytest -n` do not: JAX writes in place.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).resolve().parents[2] / ".pytest_cache" / f"xla{os.environ.get('PYTEST_XDIST_WORKER', '')}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_CPU_ENABLE_ASYNC_DISPATCH", "false")  # else collectives of fake devices can deadlock
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # libtpu would ask a metadata server for a TPU,
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")  # and take a lock that another program may hold
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
