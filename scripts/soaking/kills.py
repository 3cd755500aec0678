"""Kills at any moment: a run that is killed 20 times ends as one that nobody disturbed."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

from helpers.finetuning_runs import read_jsonl, write_config
from helpers.forked import Forked, jaxlm

from soaking.outcomes import Outcomes

KILLS = 20
_TIMED = ("time", "tokens_per_s", "examples_per_s")


def soak(folder: Path, outcomes: Outcomes) -> None:
    rng = random.Random(0)
    train = {"batch_size": 2, "steps": 800, "epochs": None, "eval_every": 20}
    config = write_config(folder, train=train, checkpoint={"every": 5, "keep": 2}, data={"max_shapes": 1})
    killed = folder / "runs/killed"

    def start(name: str) -> Forked:
        return Forked(folder / f"{name}.log", jaxlm, "finetune", "--config", str(config), f"name={name}")

    began, whole = time.monotonic(), start("whole")
    while whole.running and not _last_step(folder / "runs/whole"):
        time.sleep(0.01)
    start_up = time.monotonic() - began
    status, output = whole.finish()
    if status:
        outcomes.fault("an undisturbed run", output[-500:])
        return
    for number in range(KILLS):
        process, what, reached = start("killed"), f"kill {number}", _last_step(killed)
        if number % 2:  # while it reads, restores and compiles
            time.sleep(rng.uniform(0.1, 1.0) * start_up)
        else:  # in a step, an evaluation or a save
            while process.running and _last_step(killed) < reached + 10:
                time.sleep(0.01)
            time.sleep(rng.uniform(0.0, 0.3))
        if process.running:
            process.send(signal.SIGKILL)
        status, output = process.finish()
        if status != -signal.SIGKILL:
            outcomes.fault(what, f"it ended before it was killed: status {status}: {output[-500:]}")
        outcomes.add(what, "killed at the start" if number % 2 else "killed in training")
    status, output = start("killed").finish()
    if status or _result(killed) != _result(folder / "runs/whole"):
        outcomes.fault("the run after all kills", f"status {status}, or another result: {output[-500:]}")


def _last_step(run: Path) -> int:
    """The step of the last line of metrics.jsonl; 0 where there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)


def _result(run: Path) -> tuple[object, ...]:
    rows = [
        {key: value for key, value in row.items() if key not in _TIMED} for row in read_jsonl(run / "metrics.jsonl")
    ]
    scores = json.loads((run / "summary.json").read_text())["scores"]
    return rows, scores, (run / "model/model.safetensors").read_bytes()
