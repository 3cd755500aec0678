"""Settings of the C library and of JAX that a process has to have before it starts, where it computes on a CPU."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

_ACCELERATORS = ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0", "/dev/kfd")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables that make training on this machine's CPU faster, without those that the user has set.

    - `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`: XLA takes each step's temporaries afresh from malloc, and filling in
      their 4 KiB pages is a seventh of the time of a step; of 2 MiB pages it is next to nothing. Only where the kernel
      gives huge pages to programs that ask for them ("madvise"), with glibc 2.35 or later.
    - `JAX_CPU_ENABLE_ASYNC_DISPATCH=false`: steps queued behind each other only take turns on the same cores.

    Neither changes a result. Empty where there is an accelerator, unless `JAX_PLATFORMS` says cpu.
    """
    platforms = environ.get("JAX_PLATFORMS", "")
    if platforms != "cpu" and (platforms or any(Path(device).exists() for device in _ACCELERATORS)):
        return {}
    wanted = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}
    if _huge_pages_on_request() and _glibc() >= (2, 35):
        wanted["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    return {name: value for name, value in wanted.items() if name not in environ}


def restart_with_settings() -> None:
    """Starts this process over, the same command under the same process id, if it lacks any of `settings`.

    The C library reads its own only at the start. To be called before anything is done or heavy imported.
    """
    missing = settings(os.environ)
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
