"""For tests of what changes training (freezing, averages, rates by layer): a tiny BERT, step by step."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from helpers.finetuning_runs import run, write_config

from jaxlm.config.loading import load_config
from jaxlm.models.base import flatten
from jaxlm.setup.setup import make_setup
from jaxlm.training.plan import Plan, make_plan
from jaxlm.training.state import TrainState

SIZES = {"num_layers": 3, "embed_dim": 16, "num_heads": 2, "mlp_dim": 32, "max_positions": 64}
DRY = ("model.dropout=0", "model.attention_dropout=0")
"""Without dropout, so that another mesh or reference draws nothing else."""


def write(folder: Path, **sections: Any) -> Path:
    """A config of a classifier of three layers; one shape of batches."""
    sections["model"] = {"config": SIZES, **sections.get("model", {})}
    sections["data"] = {"max_shapes": 1, "test": None, **sections.get("data", {})}
    sections["train"] = {"batch_size": 16, "steps": 4, "epochs": None, "eval_every": 2, **sections.get("train", {})}
    return write_config(folder, **sections)


def plan_of(config: Path, *overrides: str, devices: Sequence[Any] | None = None) -> Plan:
    """The plan of a config, on one device unless others are given; in float32, whatever the CPU is fast at."""
    loaded = load_config(config, ["model.matmul=float32", *overrides])
    return make_plan(make_setup(loaded, splits=("train",), devices=devices or jax.devices()[:1]))


def train(plan: Plan, steps: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], TrainState]:
    """Returns the model's parameters before and after some steps, by name, and the state then."""
    state, _ = plan.init_state()
    before = flatten(jax.device_get(plan.model_params(state)))
    before = {name: value.copy() for name, value in before.items()}
    for _ in range(steps):
        state, _ = plan.step(state, plan.to_device(next(plan.loader)))
    plan.loader.close()
    return before, flatten(jax.device_get(plan.model_params(state))), state


def cut(directory: Path, step: int) -> None:
    """Takes a finished run back to where it was after `step`, as if it had been killed then."""
    for path in (directory / "checkpoints").iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    (directory / "summary.json").unlink()
    shutil.rmtree(directory / "model")


def weights_when_resumed(config: Path, step: int) -> tuple[bytes, bytes]:
    """Returns the exported weights of a run, and those of the same run taken back to `step` and resumed."""
    directory = config.parent / "runs/tiny"
    assert run("finetune", "--config", config) == 0
    whole = (directory / "model/model.safetensors").read_bytes()
    cut(directory, step)
    assert run("finetune", "--config", config) == 0
    return whole, (directory / "model/model.safetensors").read_bytes()
