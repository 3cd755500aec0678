"""`jaxlm bench --suite scaling`: what splitting the same work over fake CPU devices costs, per mesh preset.

Every measurement is a process of its own, and the contenders take turns. The devices share the cores of one machine:
nothing gets faster, and the ratio to one device is the overhead of the division: copies, collectives, smaller products.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from typing import Any

from jaxlm.bench.harness import run_measurement
from jaxlm.bench.record import Measurement
from jaxlm.errors import RunFailure

PRESETS = ("ddp", "fsdp", "fsdp_tp")
DEVICES = (1, 2, 4, 8)


def measure(preset: str, *, steps: int, warmup: int) -> dict[str, Any]:
    """Seconds of a training step of a small Llama on this process's devices: the median of `steps`."""
    import jax

    from jaxlm.config.schema import Config
    from jaxlm.cost.stand_in import setup_for_shapes
    from jaxlm.training.plan import make_plan

    sizes = {"vocab_size": 4096, "num_layers": 4, "embed_dim": 256, "num_heads": 8, "mlp_dim": 1024}
    # One CPU device alone may round products to bfloat16: all compute in float32 here.
    model = {"family": "llama", "config": sizes, "tokenizer": "none/needed/here", "matmul": "float32"}
    config = Config.model_validate(
        {
            "name": "bench",
            "model": model,
            "task": {"kind": "causal_lm"},
            "data": {"max_length": 128},
            "train": {"batch_size": 16, "steps": steps + warmup},
            "mesh": {"preset": preset},
        }
    )
    setup, _ = setup_for_shapes(config, jax.devices())
    plan = make_plan(setup)
    state, _ = plan.init_state()
    batch = plan.to_device(next(plan.loader))
    seconds = []
    for number in range(warmup + steps):
        start = time.perf_counter()
        state, metrics = plan.step(state, batch)
        jax.block_until_ready((state, metrics))
        if number >= warmup:
            seconds.append(time.perf_counter() - start)
    return {"seconds": statistics.median(seconds), "devices": jax.device_count()}


def bench_scaling(*, rounds: int, steps: int, warmup: int) -> Measurement:
    """Runs every preset on 1, 2, 4 and 8 fake devices in turn, `rounds` times.

    Raises:
      RunFailure: a measurement failed.
    """
    contenders = [("ddp", 1), *((preset, n) for preset in PRESETS for n in DEVICES[1:])]
    times: dict[tuple[str, int], list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for preset, number in contenders:
            times[preset, number].append(_run(preset, number, steps, warmup))
    alone = times["ddp", 1]
    lines = [
        f"One device: {statistics.median(alone) * 1e3:.0f} ms a step.",
        "",
        "| preset | " + " | ".join(f"{n} devices" for n in DEVICES[1:]) + " |",
        "|---|" + "---|" * (len(DEVICES) - 1),
    ]
    for preset in PRESETS:
        cells = []
        for number in DEVICES[1:]:
            ratios = [split / whole for split, whole in zip(times[preset, number], alone, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
        lines.append(f"| {preset} | " + " | ".join(cells) + " |")
    seconds = {f"{preset}, {number}": found for (preset, number), found in times.items()}
    return Measurement({"seconds_per_step": seconds}, "\n".join(lines))


def _run(preset: str, number: int, steps: int, warmup: int) -> float:
    command = [sys.executable, "-m", "jaxlm", "bench", "--suite", "scaling", "--worker", "--preset", preset]
    command += ["--steps", str(steps), "--warmup", str(warmup)]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={number}",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",  # collectives of fake devices can deadlock otherwise
    }
    figures = run_measurement(command, environment)
    if figures["devices"] != number:
        raise RunFailure(f"asked for {number} fake devices, found {figures['devices']}")
    return figures["seconds"]
