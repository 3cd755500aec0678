"""Killed and interrupted runs end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.finetuning_runs import read_jsonl, write_config
from helpers.forked_commands import Command
from helpers.pretraining_runs import write_pretraining

STEPS = 30
SETTINGS = {
    "train": {"batch_size": 8, "steps": STEPS, "eval_every": 7},
    "checkpoint": {"every": 3, "keep": 2},
    "logging": {"every": 2},
}


def write(folder: Path, command: str) -> Path:
    if command == "finetune":
        return write_config(folder, **{**SETTINGS, "train": {**SETTINGS["train"], "epochs": None}})
    return write_pretraining(folder, "masked_lm", **SETTINGS)


def record(run: Path) -> list[dict]:
    """metrics.jsonl without the values that depend on time."""
    timed = ("time", "tokens_per_s", "examples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(run / "metrics.jsonl")]


def results(run: Path) -> dict[str, bytes]:
    """Contents of the exported model and of the predictions, by name."""
    files = [*(run / "model").glob("*.safetensors"), run / "model/tokenizer.json", *(run / "predictions").glob("*")]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.parametrize("command", ["finetune", "pretrain"])
def test_killed_and_interrupted_runs_end_bit_identical(tmp_path, command):
    """Kills at any moment of a step, an evaluation or a save; then Ctrl-C, which saves by itself."""
    config, runs = write(tmp_path, command), tmp_path / "runs"
    metrics, rng = runs / "disturbed/metrics.jsonl", random.Random(7)
    status, errors = Command(tmp_path, command, "--config", config, "name=undisturbed").finish()
    assert status == 0, errors
    for step in (6, 12, 20):
        process = Command(tmp_path, command, "--config", config, "name=disturbed")
        process.wait_for(f'"step": {step}', metrics)
        time.sleep(rng.random() * 0.2)
        assert process.running, "the run ended before it was killed"
        process.send(signal.SIGKILL)
        assert process.finish()[0] == -signal.SIGKILL
    process = Command(tmp_path, command, "--config", config, "name=disturbed")
    process.wait_for('"step": 24', metrics)
    process.send(signal.SIGINT)
    status, errors = process.finish()
    assert status == 3, errors
    assert "resumed at" in errors and "interrupted: SIGINT: saved at step" in errors
    assert "the same command resumes" in errors and "Traceback" not in errors
    status, errors = Command(tmp_path, command, "--config", config, "name=disturbed").finish()
    assert status == 0 and "resumed at" in errors, errors
    assert json.loads((runs / "disturbed/summary.json").read_text())["steps"] == STEPS
    assert results(runs / "disturbed") == results(runs / "undisturbed")
    assert record(runs / "disturbed") == record(runs / "undisturbed")
