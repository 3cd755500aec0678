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
    train = {"batch_size": 2, "steps": 400, "epochs": None, "eval_every": 20}
    config = write_config(folder, train=train, checkpoint={"every": 5, "keep": 2}, data={"max_shapes": 1})

    def start(name: str) -> Forked:
        return Forked(folder / f"{name}.log", jaxlm, "finetune", "--config", str(config), f"name={name}")

    began = time.monotonic()
    status, output = start("whole").finish()
    length = time.monotonic() - began
    if status:
        outcomes.fault("an undisturbed run", output[-500:])
        return
    for number in range(KILLS):
        process, what = start("killed"), f"kill {number}"
        time.sleep(rng.uniform(0.2, 1.0) * min(length, 8))
        process.send(signal.SIGKILL)
        status, output = process.finish()
        if status not in (0, -signal.SIGKILL) or "Traceback" in output:
            outcomes.fault(what, f"status {status}: {output[-500:]}")
        outcomes.add(what, "finished before" if status == 0 else "killed")
    status, output = start("killed").finish()
    if status or _result(folder / "runs/killed") != _result(folder / "runs/whole"):
        outcomes.fault("the run after all kills", f"status {status}, or another result: {output[-500:]}")


def _result(run: Path) -> tuple[object, ...]:
    rows = [
        {key: value for key, value in row.items() if key not in _TIMED} for row in read_jsonl(run / "metrics.jsonl")
    ]
    scores = json.loads((run / "summary.json").read_text())["scores"]
    return rows, scores, (run / "model/model.safetensors").read_bytes()
