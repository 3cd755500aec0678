"""Cross-validations and sweeps that are killed go on, and end as undisturbed ones, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
from helpers.finetuning_runs import rows, write_config, write_jsonl
from helpers.forked import Forked, jaxlm
from helpers.run_files import record, results

pytestmark = pytest.mark.slow
KNOBS = {
    "model": {"config": {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64},
              "layer_drop": 0.1},
    "task": {"class_weights": "sqrt", "threshold": "tuned", "loss": "focal"},
    "train": {"batch_size": 8, "epochs": 3, "ema": 0.9, "r_drop": 0.5},
    "checkpoint": {"every": 2, "keep": 2},
    "logging": {"every": 1, "tensorboard": False},
}  # fmt: skip
DATA = {
    "test": None,
    "max_shapes": 1,
    "sampling": "balanced",
    "augment": {"delete": 0.2, "swap": 0.2},
    "keep_labels": {"neg": 0.6},
}


def killed(start, metrics: Path, step: int, rng: random.Random) -> None:
    """Starts a command and kills it a moment after a run of it has logged a step."""
    process = start()
    process.wait_for(lambda: metrics.exists() and f'"step": {step}' in metrics.read_text())
    time.sleep(rng.random() * 0.2)
    assert process.running, "it ended before it was killed"
    process.send(signal.SIGKILL)
    status, _ = process.finish()
    assert status == -signal.SIGKILL


def test_folds_with_every_correction(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", rows(72))
    config = write_config(tmp_path, **KNOBS, data={**DATA, "validation": None})
    runs, rng = tmp_path / "runs", random.Random(3)

    def start(name: str) -> Forked:
        return Forked(
            tmp_path / f"{name}.log", jaxlm, "finetune", "--config", str(config), f"name={name}", "train.folds=2"
        )

    status, errors = start("undisturbed").finish()
    assert status == 0, errors
    for fold, step in ((0, 3), (0, 9), (1, 5)):
        killed(lambda: start("disturbed"), runs / f"disturbed/fold-{fold}/metrics.jsonl", step, rng)
    status, errors = start("disturbed").finish()
    assert status == 0 and "resumed at" in errors and "fold-0 is finished" in errors.replace("'", ""), errors
    for name in ("fold-0", "fold-1"):
        assert record(runs / "disturbed" / name) == record(runs / "undisturbed" / name)
        assert results(runs / "disturbed" / name) == results(runs / "undisturbed" / name)
    ours, theirs = (json.loads((runs / name / "summary.json").read_text()) for name in ("disturbed", "undisturbed"))
    assert ours["scores"] == theirs["scores"] and ours["status"] == theirs["status"]
    folder = Path("predictions/out_of_fold.jsonl")
    assert (runs / "disturbed" / folder).read_bytes() == (runs / "undisturbed" / folder).read_bytes()


def test_a_sweep(tmp_path):
    pytest.importorskip("optuna")
    config = write_config(tmp_path, **KNOBS, data=DATA)
    space = tmp_path / "space.yaml"
    space.write_text("optimizer.learning_rate: {low: 1e-3, high: 1e-2, log: true}\n")
    runs, rng = tmp_path / "runs", random.Random(5)

    def start(name: str) -> Forked:
        return Forked(
            tmp_path / f"{name}.log", jaxlm, "sweep", "--config", str(config), "--space", str(space),
            "--trials", "2", "--no-pruning", f"name={name}",
        )  # fmt: skip

    status, errors = start("undisturbed").finish()
    assert status == 0, errors
    for trial, step in ((0, 9), (1, 7)):  # checkpoints before them are whole by then
        killed(lambda: start("disturbed"), runs / f"disturbed-sweep/trial-{trial}/metrics.jsonl", step, rng)
    status, errors = start("disturbed").finish()
    assert status == 0 and "resumed at" in errors, errors
    ours, theirs = (json.loads((runs / f"{n}-sweep/summary.json").read_text()) for n in ("disturbed", "undisturbed"))
    assert len(ours["trials"]) == 2 and {trial["state"] for trial in ours["trials"]} == {"finished"}
    assert ours["trials"][0]["values"] == theirs["trials"][0]["values"]
    assert ours["trials"][0]["value"] == theirs["trials"][0]["value"]
    assert record(runs / "disturbed-sweep/trial-0") == record(runs / "undisturbed-sweep/trial-0")
