"""The speed of the training step of a config, in this process."""

from __future__ import annotations

import time
from typing import Any

import jax

from jaxlm.config.schema import Config
from jaxlm.setup.setup import make_setup
from jaxlm.training.plan import make_plan


def time_steps(config: Config, *, steps: int, warmup: int) -> dict[str, Any]:
    """Times training steps; every batch shape is compiled before the clock starts.

    Args:
      config: of a run of at least `steps + warmup` steps.
    Returns:
      examples_per_second of labelled rows (windows of long ones count each), tokens_per_second, of an
      encoder-decoder target_tokens_per_second, padding_share, and what was run.
    """
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
    targets = sum(int((batch["decoder_segment_ids"] > 0).sum()) for batch in timed if "decoder_segment_ids" in batch)
    rates = {"tokens_per_second": tokens / seconds}
    if "examples" in timed[0]:
        rates["examples_per_second"] = sum(int((batch["examples"] >= 0).sum()) for batch in timed) / seconds
    if targets:
        rates["target_tokens_per_second"] = targets / seconds
    return {
        **rates,
        "padding_share": 1 - tokens / sum(batch["tokens"].size for batch in timed),
        "shapes": len(first_of_shape),
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
    }
