"""`jaxlm bench`: examples per second of a fine-tuning job, packed and padded, the Transformers Trainer beside it.

Every measurement is a process of its own and the contenders take turns, so that a drifting machine touches all alike.
Compare the medians of the ratios; a single absolute time says little.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.bench.harness import TUNED, peer_script, plain_environ, run_measurement, take_turns
from jaxlm.bench.record import Comparison
from jaxlm.bench.training_step import time_steps
from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.parallel.chips import cpu_multiplies_bfloat16

MEGA_BATCH = 50
"""Batches that the Trainer's group-by-length sampler sorts by falling length at a time, where there are 200 or more."""
BASE = "jaxlm packed, balanced order"


def measure(model: dict[str, Any], data: dict[str, Any], *, steps: int, warmup: int, seed: int) -> dict[str, Any]:
    """Times training steps of a text classifier in this process.

    Args:
      model: the config's section: init, dtype, matmul.
      data: of the config's section: train, a TSV without a header (text, label); max_length, packing, batch_order.
      steps, warmup: timed steps, and those before; every batch shape is compiled before the clock starts.
    Returns:
      examples_per_second, tokens_per_second, padding_share, and what was run.
    """
    data = {**data, "train": {"path": data["train"], "columns": ("text", "label")}}
    config = Config.model_validate(
        {
            "name": "bench",
            "seed": seed,
            "model": model,
            "task": {"text": "text", "label": "label"},
            "data": data,
            "train": {"batch_size": 32, "steps": steps + warmup},
        }
    )
    return time_steps(config, steps=steps, warmup=warmup)


def bench(job: Mapping[str, str | int], *, rounds: int, steps: int, warmup: int, dtype: str, peer: bool) -> Comparison:
    """Runs the contenders in turn, `rounds` times; returns what they measured.

    Args:
      job: model, train and max_length, as `measure` takes them.
    Raises:
      UserError: the peer was asked for outside a checkout, or for steps that are not whole mega-batches of its sampler:
        the timed texts would not have the mean length of the data.
      RunFailure: a contender failed.
    """
    shared = ["--model", str(job["model"]), "--train", str(job["train"]), "--max-length", str(job["max_length"])]
    own = [sys.executable, "-m", "jaxlm", "bench", "--worker", *shared, "--dtype", dtype]
    contenders = {
        BASE: [*own, "--order", "balanced"],
        "jaxlm packed, random order": own,
        "jaxlm padded": [*own, "--no-packing"],
    }
    # Where `model.matmul: auto` rounds the operands of products: on a CPU, for which alone there are settings.
    rounds_products = bool(TUNED) and dtype == "float32" and cpu_multiplies_bfloat16()
    if rounds_products:
        contenders["jaxlm packed, balanced order, products of float32"] = [*contenders[BASE], "--matmul", "float32"]
    if peer:
        if steps % MEGA_BATCH:
            raise UserError(
                f"--steps {steps}: expected a multiple of {MEGA_BATCH} with --peer: the Trainer's group-by-length "
                "sampler sorts so many batches by length at a time; fewer leave out the longest or the shortest texts"
            )
        script = str(peer_script("transformers_trainer.py"))
        trainer = [sys.executable, script, "--json", *shared]
        if dtype == "bfloat16":
            trainer += ["--precision", "bf16", "--compile"]
        contenders["Trainer, default collation"] = trainer
        grouped = [*trainer, "--group-by-length"]
        contenders["Trainer, group by length"] = grouped
        if rounds_products:
            contenders["Trainer, group by length, bf16 autocast"] = [*grouped, "--precision", "bf16"]
        if TUNED:
            contenders["Trainer, group by length, with jaxlm's malloc settings"] = grouped

    def measuring(name: str, command: list[str]) -> Callable[[int], dict[str, Any]]:
        total = steps if "--worker" in command else steps + warmup  # the Trainer counts its warm-up in
        counts = ["--steps", str(total), "--warmup", str(warmup), "--seed"]
        # jaxlm takes the settings by itself; others run as their users run them.
        environ = {**os.environ, **TUNED} if "malloc" in name else plain_environ()
        return lambda number: run_measurement([*command, *counts, str(number)], environ)

    return Comparison(take_turns({name: measuring(name, command) for name, command in contenders.items()}, rounds))
