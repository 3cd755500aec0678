"""Killed and interrupted runs end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from functools import partial
from pathlib import Path

import pytest
from helpers.finetuning_runs import write_config
from helpers.forked import Forked, jaxlm
from helpers.pretraining_runs import write_pretraining
from helpers.run_files import record, results

STEPS = 24
SIZES = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}
SETTINGS = {
    "train": {"batch_size": 8, "steps": STEPS, "epochs": None, "eval_every": 7},
    "checkpoint": {"every": 3, "keep": 2},
    "logging": {"every": 2},
    "model": {"config": SIZES},
}
DISTURBANCES = {
    "finetune": [(6, signal.SIGKILL), (10, signal.SIGINT), (16, signal.SIGKILL)],
    "pretrain": [(12, signal.SIGKILL)],
}
"""By command: the signals to send, each a moment after the log line of a step."""


def write(folder: Path, command: str) -> Path:
    if command == "finetune":
        return write_config(folder, **SETTINGS, data={"max_shapes": 1})
    return write_pretraining(folder, "masked_lm", **SETTINGS)


@pytest.mark.parametrize("command", [pytest.param("finetune", marks=pytest.mark.slow), "pretrain"])
def test_killed_and_interrupted_runs_end_bit_identical(tmp_path, command):
    """Signals come at any moment of a step, an evaluation or a save; Ctrl-C saves by itself."""
    config, runs, rng = write(tmp_path, command), tmp_path / "runs", random.Random(7)

    metrics = runs / "disturbed/metrics.jsonl"

    def start(name: str) -> Forked:
        return Forked(tmp_path / f"{name}.log", jaxlm, command, "--config", str(config), f"name={name}")

    def logged(step: int) -> bool:
        return metrics.exists() and f'"step": {step}' in metrics.read_text()

    status, errors = start("undisturbed").finish()  # and leaves the others what it compiled
    assert status == 0, errors
    for step, number in DISTURBANCES[command]:
        process = start("disturbed")
        process.wait_for(partial(logged, step))
        if number == signal.SIGKILL:
            time.sleep(rng.random() * 0.2)
        assert process.running, "the run ended before it was disturbed"
        process.send(number)
        status, errors = process.finish()
        if number == signal.SIGKILL:
            assert status == -signal.SIGKILL
        else:
            assert status == 3, errors
            assert "interrupted: SIGINT: saved at step" in errors and "the same command resumes" in errors
            assert "Traceback" not in errors
    status, errors = start("disturbed").finish()
    assert status == 0 and "resumed at" in errors, errors
    assert json.loads((runs / "disturbed/summary.json").read_text())["steps"] == STEPS
    assert results(runs / "disturbed") == results(runs / "undisturbed")
    assert record(runs / "disturbed") == record(runs / "undisturbed")
