"""Counts of what XLA compiles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def count_compilations() -> Iterator[Counter[str]]:
    """Counts by function, such as `jit(step)`, how often it is compiled or its program read from the cache."""
    found: Counter[str] = Counter()

    def listen(name: str, _: float, **kw: object) -> None:
        if name.endswith("backend_compile_duration"):
            found[str(kw.get("fun_name"))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
