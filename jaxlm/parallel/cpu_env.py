"""Environment variables that speed up training on a CPU; the C library and JAX read them when a process starts."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
FEW_CORES = 4
"""Largest number of cores with a single malloc arena. Measured with two cores; more cores wait longer for the arena."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def settings(environ: Mapping[str, str], *, keep_memory: bool = False) -> dict[str, str]:
    """Returns the environment variables that speed up training on this machine's CPU and that the user has not set.

    - `GLIBC_TUNABLES=glibc.malloc.hugetlb=1` lets malloc use 2 MiB pages. XLA allocates the temporary arrays of each
      step with malloc, hundreds of megabytes at once; filling 4 KiB pages with zeros takes a seventh of a step's time.
      Set if the kernel gives huge pages to programs that ask for them ("madvise") and glibc is 2.35 or later.
    - With `keep_memory`, malloc also uses a single arena, never mmap, and never returns memory to the kernel, so that
      freed pages are used again and need not be filled with zeros. The process then keeps its peak memory, and its
      threads wait for the arena: on two cores, texts are tokenized at less than half the speed. This is for commands
      that mostly run training steps; set on up to `FEW_CORES` cores.
    - `JAX_CPU_ENABLE_ASYNC_DISPATCH=false` runs steps one by one: queued steps would compete for the same cores.

    None of them changes a result. Returns an empty dict if there is an accelerator, unless `JAX_PLATFORMS` is cpu.

    Args:
      environ: the environment variables of this process.
      keep_memory: whether the command mostly runs training steps.
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms != "cpu" and (platforms or any(Path(device).exists() for device in _ACCELERATORS)):
        return {}
    tunables = {}
    if keep_memory and _glibc() >= (2, 26) and len(os.sched_getaffinity(0)) <= FEW_CORES:
        tunables |= {"arena_max": 1, "mmap_max": 0, "trim_threshold": 2**36}
    if _huge_pages_on_request() and _glibc() >= (2, 35):
        tunables["hugetlb"] = 1
    wanted = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    if tunables:
        wanted["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in tunables.items())
    return {name: value for name, value in wanted.items() if name not in environ}


def restart_with_settings(*, keep_memory: bool = False) -> None:
    """Replaces this process by the same command with `settings` added, if any of them is missing.

    The C library reads its variables only when a process starts. Call this before any work and any large import. The
    process id stays the same.
    """
    missing = settings(os.environ, keep_memory=keep_memory)
    if missing and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **missing})


def _huge_pages_on_request() -> bool:
    try:
        return "[madvise]" in _HUGE_PAGES.read_text(encoding="ascii")
    except OSError:
        return False


def _glibc() -> tuple[int, ...]:
    name, version = platform.libc_ver()
    return tuple(int(part) for part in version.split(".")) if name == "glibc" else (0,)
