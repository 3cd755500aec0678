"""Every batch shape is compiled once, ahead of its first batch."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.compilations import count_compilations
from helpers.finetuning_runs import rows, write_config, write_jsonl

from jaxlm.config.loading import load_config
from jaxlm.setup.setup import make_setup
from jaxlm.training.plan import make_plan
from jaxlm.training.precompile import Precompiler


@pytest.fixture
def seen():
    with count_compilations() as found:
        yield found


def test_programs_are_there_before_their_batches(tmp_path, seen):
    write_jsonl(tmp_path / "train.jsonl", rows(400))
    data = {"max_shapes": 3, "max_length": 16, "validation": None, "test": None}
    path = write_config(tmp_path, data=data, mesh={"preset": "fsdp"}, train={"batch_size": 64})
    plan = make_plan(make_setup(load_config(path), splits=("train",)))
    counts = plan.loader.shapes.row_counts
    state, _ = plan.init_state()
    with Precompiler(plan) as programs:
        met = set()
        for _ in range(60):
            batch = next(plan.loader)
            size, new = len(batch["tokens"]), len(batch["tokens"]) not in met
            if new and met:
                programs.wait(batch)
                seen.clear()
            state, metrics = plan.step(state, plan.to_device(batch))
            if new and met:
                assert not seen
            if not met:
                programs.begin(batch)
                programs._thread.submit(int).result()  # waits for all of them
                assert seen["jit(step)"] >= len(counts) - 1
            met.add(size)
        assert np.isfinite(float(metrics["loss"])) and len(met) == len(counts) > 1
