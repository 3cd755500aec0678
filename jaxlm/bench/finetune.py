"""`jaxlm bench`: examples per second of a fine-tuning job, packed and padded, the Transformers Trainer beside it.

Every measurement is a process of its own and the contenders take turns, so that a drifting machine touches all alike.
Compare the medians of the ratios; a single absolute time says little.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jaxlm.bench.harness import run_measurement
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.parallel.cpu_env import settings
from jaxlm.setup.setup import make_setup
from jaxlm.training.plan import make_plan

PEER = Path(__file__).resolve().parents[2] / "scripts" / "peers" / "transformers_trainer.py"
MEGA_BATCH = 50
"""Batches that the Trainer's group-by-length sampler sorts by falling length at a time, where there are 200 or more."""
BASE = "jaxlm packed, balanced order"
TUNED = settings({"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "")}, keep_memory=True)
"""What `jaxlm.parallel.cpu_env` has set for this process, and would not be there otherwise."""


def measure(
    model: str, train: str, *, packing: bool, order: str, steps: int, warmup: int, dtype: str, seed: int
) -> dict[str, Any]:
    """Times training steps of a text classifier in this process.

    Args:
      model: HF-format directory.
      train: TSV without a header: text, label.
      packing, order: as in the config's `data`.
      steps, warmup: timed steps, and those before; every batch shape is compiled before the clock starts.
    Returns:
      examples_per_second, tokens_per_second, padding_share, and what was run.
    """
    config = Config.model_validate(
        {
            "name": "bench",
            "seed": seed,
            "model": {"init": model, "dtype": dtype},
            "task": {"text": "text", "label": "label"},
            "data": {
                "train": {"path": train, "columns": ("text", "label")},
                "max_length": 128,
                "packing": packing,
                "batch_order": order,
            },
            "train": {"batch_size": 32, "steps": steps + warmup},
        }
    )
    plan = make_plan(make_setup(config))
    state, _ = plan.init_state()
    batches = [next(plan.loader) for _ in range(steps + warmup)]
    plan.loader.close()
    first_of_shape = {batch["tokens"].shape: batch for batch in batches}
    for batch in [*first_of_shape.values(), *batches[:warmup]]:
        state, metrics = plan.step(state, plan.to_device(batch))
    jax.block_until_ready(metrics)
    start = time.perf_counter()
    for batch in batches[warmup:]:
        state, metrics = plan.step(state, plan.to_device(batch))
    jax.block_until_ready((state, metrics))
    seconds = time.perf_counter() - start
    timed = batches[warmup:]
    tokens = sum(int((batch["segment_ids"] > 0).sum()) for batch in timed)
    return {
        "examples_per_second": sum(int((batch["examples"] >= 0).sum()) for batch in timed) / seconds,
        "tokens_per_second": tokens / seconds,
        "padding_share": 1 - tokens / sum(batch["tokens"].size for batch in timed),
        "shapes": len(first_of_shape),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }


def bench(model: str, train: str, *, rounds: int, steps: int, warmup: int, dtype: str, peer: bool) -> str:
    """Runs the contenders in turn, `rounds` times; returns a Markdown table of medians.

    Raises:
      UserError: the peer was asked for outside a checkout, or for steps that are not whole mega-batches of its sampler:
        the timed texts would not have the mean length of the data.
      RunFailure: a contender failed.
    """
    own = [sys.executable, "-m", "jaxlm", "bench", "--worker", "--model", model, "--train", train, "--dtype", dtype]
    contenders = {
        BASE: [*own, "--order", "balanced"],
        "jaxlm packed, random order": own,
        "jaxlm padded": [*own, "--no-packing"],
    }
    if peer:
        if not PEER.is_file():
            raise UserError("--peer: needs a checkout of the repository, with scripts/peers/")
        if steps % MEGA_BATCH:
            raise UserError(
                f"--steps {steps}: expected a multiple of {MEGA_BATCH} with --peer: the Trainer's group-by-length "
                "sampler sorts so many batches by length at a time; fewer leave out the longest or the shortest texts"
            )
        trainer = [sys.executable, str(PEER), "--json", "--model", model, "--train", train]
        if dtype == "bfloat16":
            trainer += ["--precision", "bf16", "--compile"]
        contenders["Trainer, default collation"] = trainer
        contenders["Trainer, group by length"] = [*trainer, "--group-by-length"]
        if TUNED:
            contenders["the same, with jaxlm's malloc settings"] = [*trainer, "--group-by-length"]
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, command in contenders.items():
            total = steps if "--worker" in command else steps + warmup  # the Trainer counts its warm-up in
            counts = ["--steps", str(total), "--warmup", str(warmup), "--seed", str(number)]
            # jaxlm takes the settings by itself; others run as their users run them.
            environ = {**os.environ, **TUNED} if "malloc" in name else _without(TUNED)
            results[name].append(run_measurement([*command, *counts], environ))
    return _table(results)


def _without(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if settings.get(name) != value}


def _table(results: dict[str, list[dict[str, Any]]]) -> str:
    speeds = {name: [run["examples_per_second"] for run in runs] for name, runs in results.items()}
    base = speeds[BASE]
    lines = [
        "| | examples/s: min, median, max | padding | first row / this, median of rounds |",
        "|---|---|---|---|",
    ]
    for name, values in speeds.items():
        ratio = statistics.median(ours / other for ours, other in zip(base, values, strict=True))
        padding = statistics.median(run["padding_share"] for run in results[name])
        low, middle, high = min(values), statistics.median(values), max(values)
        lines.append(f"| {name} | {low:.1f}, {middle:.1f}, {high:.1f} | {padding:.1%} | {ratio:.2f} |")
    return "\n".join(lines)
