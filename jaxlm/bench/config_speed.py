"""`jaxlm bench --suite config`: examples per second of a config's training, the Transformers Trainer beside it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jaxlm.bench.harness import peer_script, plain_environ, run_measurement, speed_table
from jaxlm.bench.training_step import time_steps
from jaxlm.config.loading import load_config
from jaxlm.config.schema import Config
from jaxlm.errors import UserError

_PEERS = {"tagging": "transformers_tagging.py", "question_answering": "transformers_question_answering.py"}


def measure(path: Path, *, steps: int, warmup: int, seed: int) -> dict[str, Any]:
    """Times training steps of a config in this process; see `time_steps`."""
    overrides = [f"train.steps={steps + warmup}", "train.epochs=null", f"seed={seed}"]
    return time_steps(load_config(path, overrides), steps=steps, warmup=warmup)


def bench_config(path: Path, *, rounds: int, steps: int, warmup: int, peer: bool) -> str:
    """Runs the contenders in turn, `rounds` times; returns a Markdown table of medians. Windows of long rows count as
    an example each.

    Raises:
      UserError: no such config, or a peer was asked for that its task has not.
      RunFailure: a contender failed.
    """
    own = [sys.executable, "-m", "jaxlm", "bench", "--suite", "config", "--config", str(path), "--worker"]
    contenders = {"jaxlm": (own, steps)}
    if peer:
        contenders["Trainer"] = (_peer(load_config(path)), steps + warmup)  # it counts its warm-up in
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, (command, total) in contenders.items():
            counts = ["--steps", str(total), "--warmup", str(warmup), "--seed", str(number)]
            results[name].append(run_measurement([*command, *counts], plain_environ()))
    return speed_table(results)


def _peer(config: Config) -> list[str]:
    """The command of the Trainer on the settings of a config."""
    kind = config.task.kind
    if kind not in _PEERS:
        raise UserError(f"--peer: task.kind={kind} has no peer; expected one of {', '.join(_PEERS)}")
    train = config.data.train
    if config.model.init is None or train is None or not isinstance(train.path, str):
        raise UserError("--peer: expected model.init, an HF-format directory or hub id, and one file in data.train")
    options = {
        "model": config.model.init,
        "train": train.path,
        "max-length": config.data.max_length,
        "batch-size": config.train.batch_size,
        "learning-rate": config.optimizer.learning_rate,
        "weight-decay": config.optimizer.weight_decay,
    }
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, str(peer_script(_PEERS[kind])), "--json", *given]
