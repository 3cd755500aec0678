"""Measurements in a process each, so that neither memory nor compiled programs of one touch another; their table."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jaxlm.bench.record import Comparison
from jaxlm.errors import RunFailure, UserError
from jaxlm.parallel.cpu_env import settings

TUNED = settings({"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}, keep_memory=True)
"""What `jaxlm.parallel.cpu_env` has set for this process, and would not be there otherwise."""
PEER_PACKAGES = ("torch", "transformers", "accelerate")
"""What the extra `parity` installs for scripts/peers."""


def plain_environ() -> dict[str, str]:
    """This process's environment without `TUNED`: jaxlm takes it by itself, and others run as their users run them."""
    return {name: value for name, value in os.environ.items() if TUNED.get(name) != value}


def run_measurement(
    command: Sequence[str], environ: Mapping[str, str] | None = None, *, show_stderr: bool = False
) -> dict[str, Any]:
    """Returns the JSON object in the last line of a command's standard output.

    Args:
      environ: the whole environment; None: that of this process.
      show_stderr: lets the command write to the terminal; otherwise its standard error shows only in a failure.

    Raises:
      RunFailure: the command failed; names it and the end of its standard error.
    """
    stderr = None if show_stderr else subprocess.PIPE
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environ)
    if done.returncode != 0:
        raise RunFailure(f"{' '.join(command)} failed:\n{(done.stderr or 'see above')[-2000:]}")
    return json.loads(done.stdout.strip().split("\n")[-1])


def take_turns(
    contenders: Mapping[str, Callable[[int], dict[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Lets each contender measure once a round, by the number of the round; returns what they measured, by round.

    Raises:
      RunFailure: one failed; what was measured before that stands in the message.
    """
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, measure in contenders.items():
            try:
                results[name].append(measure(number))
            except RunFailure as error:
                raise RunFailure(f"{error}\nmeasured before it: {json.dumps(results)}") from error
    return results


def peer_script(name: str) -> Path:
    """The path of a script in scripts/peers.

    Raises:
      UserError: jaxlm does not stand in a checkout, or what the peers need is not installed.
    """
    path = Path(__file__).resolve().parents[2] / "scripts" / "peers" / name
    if not path.is_file():
        raise UserError("--peer: needs a checkout of the repository, with scripts/peers/")
    if missing := [package for package in PEER_PACKAGES if find_spec(package) is None]:
        raise UserError(f"--peer: needs {', '.join(missing)}: pip install 'jaxlm[parity]'")
    return path


def speed_table(comparison: Comparison) -> str:
    """Returns a Markdown table of contenders, the first of which the others are compared with."""
    results, unit = comparison.results, comparison.unit
    once = all(len(runs) == 1 for runs in results.values())
    titles = ["", f"{unit.replace('_', ' ')}/s", "first row / this"]
    if not once:
        titles = ["", f"{titles[1]}: min, median, max", f"{titles[2]}, median of rounds"]
    pads = all("padding_share" in run for runs in results.values() for run in runs)
    if pads:
        titles.insert(2, "padding")
    lines = [f"| {' | '.join(titles).lstrip()} |", "|---" * len(titles) + "|"]
    for name in results:
        values = comparison.speeds(name)
        shown = values if once else (min(values), statistics.median(values), max(values))
        spread = ", ".join(f"{value:,.1f}" for value in shown)
        cells = [name, spread, f"{comparison.ratio(name):.2f}"]
        if pads:
            cells.insert(2, f"{statistics.median(run['padding_share'] for run in results[name]):.1%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
