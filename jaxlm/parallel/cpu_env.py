"""Settings of the C library and of JAX that a process has to have before it starts, where it computes on a CPU."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
FEW_CORES = 4
"""Measured on two; the more cores, the longer they wait for one arena."""
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def settings(environ: Mapping[str, str], *, keep_memory: bool = False) -> dict[str, str]:
    """Environment variables that make training on this machine's CPU faster, without those that the user has set.

    - `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`: XLA takes each step's temporaries from malloc, hundreds of megabytes in
      one piece, and filling in their 4 KiB pages is a seventh of the time of a step; of 2 MiB pages it is much less.
      Only where the kernel gives huge pages to programs that ask for them ("madvise"), with glibc 2.35 or later.
    - With `keep_memory` also one arena of malloc's, which maps nothing by itself and is not trimmed: pages given back
      are handed out again, and the kernel has none to fill in. In return the process keeps what it once had, and
      threads wait for each other: texts are tokenized at less than half the speed on two cores. So for commands that
      mostly take steps, and only on up to `FEW_CORES` cores.
    - `JAX_CPU_ENABLE_ASYNC_DISPATCH=false`: steps queued behind each other only take turns on the same cores.

    None changes a result. Empty where there is an accelerator, unless `JAX_PLATFORMS` says cpu.
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
    """Starts this process over, the same command under the same process id, if it lacks any of `settings`.

    The C library reads its own only at the start. To be called before anything is done or heavy imported.
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
