"""For tests: how much memory something takes."""

from __future__ import annotations

import re
import resource
import tracemalloc
from collections.abc import Callable
from pathlib import Path


def peak(run: Callable[[], object]) -> float:
    """Most megabytes of Python's memory that a call takes."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def resident_peak() -> int:
    """Most megabytes of memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's getrusage begins with what the parent held when it started this process
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 10**6
