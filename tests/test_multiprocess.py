"""Several real processes on loopback: the same results as one, files once, and an end when one of them fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tinyrun import read_jsonl, write_config

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = {
    "train": {"batch_size": 8, "epochs": 2, "eval_every": 4},
    "checkpoint": {"every": 3, "keep": 2},
    "logging": {"every": 1},
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}


def start(processes: int, *arguments: object, devices: int = 1) -> subprocess.Popen:
    """A command in several processes, through scripts/launch_local.py."""
    launcher = [sys.executable, str(REPOSITORY / "scripts/launch_local.py"), "-n", str(processes)]
    command = [*launcher, "--devices-per-process", str(devices), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)


def launch(processes: int, *arguments: object, devices: int = 1, status: int = 0) -> tuple[str, str]:
    """Runs it to the end; returns what it printed, on both streams."""
    process = start(processes, *arguments, devices=devices)
    printed, errors = process.communicate(timeout=500)
    assert process.returncode == status, errors
    return printed, errors


def finetune(config: Path, name: str, processes: int, *changes: str, devices: int = 1, status: int = 0) -> str:
    arguments = ("finetune", "--config", config, f"name={name}", *changes)
    return launch(processes, *arguments, devices=devices, status=status)[1]


def record(run: Path) -> list[dict]:
    """metrics.jsonl without what time decides."""
    timed = ("time", "tokens_per_s", "examples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(run / "metrics.jsonl")]


def assert_same_results(run: Path, other: Path) -> None:
    """Parameters, metrics and predictions of two runs, up to the order of sums."""
    for name, value in load_file(run / "model/model.safetensors").items():
        expected = load_file(other / "model/model.safetensors")[name]
        np.testing.assert_allclose(value, expected, atol=2e-5, rtol=2e-4, err_msg=name)
    found, expected = record(run), record(other)
    assert [(r["kind"], r["step"], r.get("split")) for r in found] == [
        (r["kind"], r["step"], r.get("split")) for r in expected
    ]
    for one, two in zip(found, expected, strict=True):
        assert {k: v for k, v in one.items() if k not in ("kind", "split")} == pytest.approx(
            {k: v for k, v in two.items() if k not in ("kind", "split")}, rel=2e-4, abs=1e-6
        )


def test_two_processes_equal_one(tmp_path):
    """Same number of devices, dropout and accumulation included; every file is written once."""
    train = {**SETTINGS["train"], "accumulation": 2}
    config = write_config(tmp_path, **{**SETTINGS, "train": train})
    errors = finetune(config, "two", 2)
    assert "process 0 of 2" in errors and errors.count("two: 2") == 0
    assert not [line for line in errors.splitlines() if line.startswith("[1]") and "step" in line], errors
    finetune(config, "one", 1, devices=2)
    runs = tmp_path / "runs"
    assert_same_results(runs / "two", runs / "one")
    names = {str(p.relative_to(runs / "one")) for p in (runs / "one").rglob("*") if "checkpoints" not in str(p)}
    assert names == {str(p.relative_to(runs / "two")) for p in (runs / "two").rglob("*") if "checkpoints" not in str(p)}
    summaries = [json.loads((runs / name / "summary.json").read_text()) for name in ("one", "two")]
    assert [summary["environment"]["processes"] for summary in summaries] == [1, 2]
    assert summaries[0]["data"] == summaries[1]["data"]
    predictions = [read_jsonl(runs / name / "predictions/test.jsonl") for name in ("one", "two")]
    assert [row["id"] for row in predictions[1]] == list(range(19))
    assert [row["prediction"]["label"] for row in predictions[0]] == [
        row["prediction"]["label"] for row in predictions[1]
    ]
