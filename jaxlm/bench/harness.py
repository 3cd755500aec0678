"""Runs a measurement in a process of its own, so that neither its memory nor its compiled programs touch another."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from jaxlm.errors import RunFailure


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
