"""A disk that is full at seven places of a run: it fails in one line or goes on, and ends whole with room again."""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.forked import Forked, jaxlm
from helpers.pretraining_runs import write_pretraining

from soaking.outcomes import Outcomes

PLACES = {
    "vocabulary": ("jaxlm.tokenizer.tokenizer", "Tokenizer.save"),
    "token cache": ("jaxlm.data.corpus.writer", "TokenWriter.add"),
    "row plan": ("jaxlm.data.corpus.row_plan", "_write_rows"),
    "config.yaml, summary.json": ("jaxlm.run.run_dir", "RunDir.write_text"),
    "metrics.jsonl": ("jaxlm.run.tracking", "Tracker._write"),
    "TensorBoard": ("jaxlm.run.event_file", "EventFile.__init__"),
    "checkpoint": ("jaxlm.training.checkpoint", "Checkpointer.save"),
}
"""Module and function before which the disk fills up."""


def soak(folder: Path, outcomes: Outcomes) -> None:
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True).returncode:
        outcomes.add("full disk", "left out: mounting is not permitted here")
        return
    try:
        config = write_pretraining(folder, "masked_lm", logging={"tensorboard": True, "directory": str(disk / "runs")})
        arguments = ("pretrain", "--config", str(config), f"data.token_cache={disk}/tokens")
        status, output = Forked(folder / "log", jaxlm, *arguments).finish()
        if status:
            outcomes.fault("an undisturbed run", output[-500:])
            return
        expected = _scores(disk)
        for place, (module, function) in PLACES.items():
            for made in ("runs", "tokens"):
                shutil.rmtree(disk / made, ignore_errors=True)
            status, output = Forked(folder / "log", _run_full, disk, module, function, *arguments).finish()
            (disk / "filler").unlink(missing_ok=True)
            fails = "Traceback" in output or (status and "No space left" not in output)
            if status not in (0, 1) or fails or (status == 0 and "cannot be written" not in output):
                outcomes.fault(place, f"status {status}: {output[-600:]}")
                continue
            again, output = Forked(folder / "log", jaxlm, *arguments).finish()
            if again or _scores(disk) != expected:
                outcomes.fault(f"{place}, with room again", f"status {again}, or other scores: {output[-600:]}")
            else:
                outcomes.add(place, "failed, then whole" if status else "went on")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def _scores(disk: Path) -> Any:
    return json.loads((disk / "runs/tiny-lm/summary.json").read_text())["scores"]


def _run_full(disk: Path, module: str, function: str, *arguments: str) -> None:
    """The command, with a disk that is full from the call of a function on; of TensorBoard's, during its first call."""
    owner: Any = importlib.import_module(module)
    *path, name = function.split(".")
    for part in path:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)

    def full(*args: Any, **kwargs: Any) -> Any:
        _fill(disk)
        if not function.startswith("EventFile"):
            return original(*args, **kwargs)
        setattr(owner, name, original)
        try:
            return original(*args, **kwargs)
        finally:
            (disk / "filler").unlink()

    setattr(owner, name, full)
    jaxlm(*arguments)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
