"""Measurements kept: a JSON file of all figures, and a line of a CSV file for each ratio."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from jaxlm.files import atomic_write, explain_write_errors

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch", "transformers")
COLUMNS = ("date", "commit", "machine", "suite", "measured", "contender", "ratio")
"""Of the CSV file."""


class Comparison(NamedTuple):
    """Contenders that took turns.

    Attributes:
      results: by contender, its measurements by round; the first is what the others are compared with.
      unit: what is counted: measurements have `<unit>_per_second`.
    """

    results: Mapping[str, Sequence[Mapping[str, Any]]]
    unit: str = "examples"

    def speeds(self, name: str) -> list[float]:
        """Returns what a contender counted a second, by round."""
        return [run[f"{self.unit}_per_second"] for run in self.results[name]]

    def ratio(self, name: str) -> float:
        """Returns the median over the rounds of the first contender's speed over another's."""
        base = self.speeds(next(iter(self.results)))
        return statistics.median(ours / other for ours, other in zip(base, self.speeds(name), strict=True))


class Measurement(NamedTuple):
    """What a suite without contenders found.

    Attributes:
      figures: by name, for the JSON file.
      table: the same for a reader, in Markdown.
    """

    figures: Mapping[str, Any]
    table: str


def describe(found: Comparison | Measurement, suite: str, command: str) -> dict[str, Any]:
    """Returns the contents of the JSON file: the figures, and what they were measured with.

    Args:
      command: as typed.
    """
    circumstances = {
        "suite": suite,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "machine": machine(),
        "python": platform.python_version(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name)) is not None},
    }
    if isinstance(found, Measurement):
        return {**circumstances, "figures": found.figures, "table": found.table}
    return {
        **circumstances,
        "unit": found.unit,
        "results": {name: list(runs) for name, runs in found.results.items()},
        "ratios": {name: found.ratio(name) for name in found.results},
    }


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Writes the JSON file, whole or not at all."""
    with explain_write_errors(path), atomic_write(path) as partial:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def append_lines(path: Path, record: Mapping[str, Any], measured: str) -> None:
    """Adds a line for each contender but the first to a CSV file, which is begun where there is none.

    Args:
      measured: what was measured, in a word: a config, a model.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    if not path.exists():
        writer.writerow(COLUMNS)
    base, *others = record["ratios"]
    for name in others or [base]:
        common = record["date"], record["commit"], record["machine"]["device"], record["suite"], measured
        writer.writerow([*common, name, f"{record['ratios'][name]:.3f}"])
    with explain_write_errors(path), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":  # an editor left the last line open
                file.write(b"\n")
        file.write(lines.getvalue().encode())


def machine() -> dict[str, Any]:
    """Returns the name of the device that computes, how many cores this process may use, and the operating system."""
    import jax

    device = jax.devices()[0]
    name = _cpu_name() if device.platform == "cpu" else device.device_kind
    return {"device": name, "devices": jax.device_count(), "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform()}  # fmt: skip


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "cpu")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout that jaxlm stands in, with + behind it where files have changed; None elsewhere."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    asked = [*git, "rev-parse", "--short", "HEAD"], [*git, "status", "--porcelain"]
    try:
        commit, changes = (subprocess.run(c, capture_output=True, text=True, check=True).stdout.strip() for c in asked)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if any(not line.startswith("??") for line in changes.splitlines()) else "")
