"""`jaxlm bench --suite startup`: seconds from a command to its first training step, without and with a cache."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from jaxlm.bench.record import Measurement
from jaxlm.errors import RunFailure

EMPTY, FILLED = "empty, the step is compiled", "filled, the step is found"


def bench_startup(model: Mapping[str, str], train: str, *, rounds: int) -> Measurement:
    """Starts `jaxlm finetune` with an empty compile cache and again with what that left; batches of 32 texts.

    Args:
      model: the config's section.
      train: a TSV without a header (text, label), cut at 128 tokens.
    Raises:
      RunFailure: the command ended before its first step.
    """
    seconds: dict[str, list[float]] = {EMPTY: [], FILLED: []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            config = {
                "name": "bench",
                "model": dict(model),
                "task": {"text": "text", "label": "label"},
                "data": {"train": {"path": train, "columns": ["text", "label"]}, "max_length": 128},
                "train": {"batch_size": 32, "steps": 1},
                "logging": {"every": 1, "directory": f"{folder}/runs", "compile_cache": f"{folder}/xla"},
            }
            path = Path(folder) / "bench.yaml"
            path.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
            for cache in seconds:
                seconds[cache].append(_first_step(path))
    lines = ["| compile cache | seconds to the end of the first step: min, median, max |", "|---|---|"]
    for cache, found in seconds.items():
        lines.append(f"| {cache} | {min(found):.1f}, {statistics.median(found):.1f}, {max(found):.1f} |")
    return Measurement({"seconds": seconds}, "\n".join(lines))


def _first_step(config: Path) -> float:
    """Seconds from the command until it logs its first step; it is stopped there."""
    environ = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    command = [sys.executable, "-m", "jaxlm", "finetune", "--config", str(config), f"name=started-{time.time_ns()}"]
    start, said = time.perf_counter(), []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if " step 1/1 " in line:
                found = time.perf_counter() - start
                process.kill()
                return found
    raise RunFailure(f"{' '.join(command)} logged no step:\n{''.join(said)[-2000:]}")
