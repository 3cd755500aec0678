"""Killed and interrupted runs end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.finetuning_runs import read_jsonl, write_config

SETTINGS = {
    "train": {"batch_size": 4, "epochs": 6, "eval_every": 7},
    "checkpoint": {"every": 3, "keep": 2},
}


def start(config: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxlm", "finetune", "--config", str(config), f"name={name}"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # one device: starts sooner
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def finish(config: Path, name: str) -> str:
    process = start(config, name)
    _, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors
    return errors


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl speaks of `step`, or the process ends."""
    log = run / "metrics.jsonl"
    while process.poll() is None:
        if log.exists() and any(f'"step": {s}' in log.read_text() for s in range(step, step + 4)):
            return
        time.sleep(0.02)


def record(run: Path) -> list[dict]:
    """metrics.jsonl without what time decides."""
    timed = ("time", "tokens_per_s", "examples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(run / "metrics.jsonl")]


@pytest.mark.slow
def test_five_sigkills_end_bit_identical(tmp_path):
    config = write_config(tmp_path, **SETTINGS)
    finish(config, "undisturbed")
    rng = random.Random(7)
    for step in sorted(rng.sample(range(4, 92), 5)):
        process = start(config, "killed")
        wait_for_step(tmp_path / "runs/killed", step, process)
        time.sleep(rng.random() * 0.3)
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        process.communicate()
    errors = finish(config, "killed")
    assert "resumed at" in errors
    runs = tmp_path / "runs"
    for name in ("model/model.safetensors", "predictions/test.jsonl", "model/tokenizer.json"):
        assert (runs / "killed" / name).read_bytes() == (runs / "undisturbed" / name).read_bytes(), name
    assert record(runs / "killed") == record(runs / "undisturbed")


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):
    config = write_config(tmp_path, **{**SETTINGS, "train": {"batch_size": 4, "epochs": 3}})
    process = start(config, "tiny")
    wait_for_step(tmp_path / "runs/tiny", 4, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 3, errors
    assert "interrupted: SIGINT: saved at step" in errors and "the same command resumes" in errors
    assert "Traceback" not in errors
    errors = finish(config, "tiny")
    assert "resumed at" in errors
    assert json.loads((tmp_path / "runs/tiny/summary.json").read_text())["steps"] == 48
