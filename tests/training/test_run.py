"""What a run takes from its checkpoints: the best that is sound, and the refusal of other held-out data."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.saved_states import checkpointer

from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.errors import UserError
from jaxlm.tasks.records import Metric
from jaxlm.training import run as runs
from jaxlm.training.plan import Plan
from jaxlm.training.progress import BestCheckpoint, Progress
from jaxlm.training.state import TrainState, fingerprint, saved_part


def state_of(step: int) -> TrainState:
    return TrainState(jnp.int32(step), {"w": jnp.full(8, step, jnp.float32)}, {"m": jnp.zeros(8)}, jax.random.key(0))


def make_run(saver, held_out=None) -> Any:
    """The parts of a run that `best_state` and `start` read."""
    plan = create_autospec(Plan, instance=True)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))
    plan.abstract_state.return_value = abstract
    plan.init_frozen.return_value = {}
    plan.held_out = held_out or {}
    plan.loader = SimpleNamespace(set_state=lambda state: None)
    data = DataConfig(validation=SourceConfig(path="rows/val.jsonl"))
    plan.setup = SimpleNamespace(config=SimpleNamespace(data=data))
    plan.setup.config.model = SimpleNamespace(init="base")
    run = create_autospec(runs.Run, instance=True)
    run.plan, run.checkpoints, run.metric = plan, saver, Metric("f1")
    return run


def save(saver, scores: dict[int, float], held_out=None, frozen="") -> Progress:
    """Saves steps as the loop does; returns the progress at the last."""
    best = BestCheckpoint(True)
    for step, score in scores.items():
        best.update(step, score, None)
        extra = {"data": {}, "initialized": [], "held_out": held_out or {}, "frozen": frozen}
        extra["progress"] = Progress(best, step=step).to_json()
        saver.save(step, saved_part(state_of(step)), extra, {"f1": score}, wait=True)
    return Progress(best, step=max(scores))


def value(state: TrainState) -> int:
    return int(np.asarray(state.params["w"])[0])


@pytest.mark.parametrize(
    ("lost", "exported", "words"),
    [
        ([], 2, None),
        (
            [2],
            3,
            "the best checkpoint, of step 2 (f1 0.9000), is damaged or gone; the next best is that of step 3 (f1 0.7",
        ),
        ([2, 3], 4, "is damaged or gone; the next best is that of step 4"),
        ([2, 3, 4], 4, "and no other is ranked"),
    ],
)
def test_the_best_that_is_sound_is_exported_and_named(tmp_path, caplog, lost, exported, words):
    with checkpointer(tmp_path, keep=2, metric="f1") as saver:
        progress = save(saver, {2: 0.9, 3: 0.7, 4: 0.6})
        for step in lost:
            shutil.rmtree(tmp_path / str(step))
        state, step = runs.best_state(make_run(saver), state_of(4), progress)
        assert value(state) == step == exported
    assert (words is None and not caplog.records) or words in caplog.text


def test_a_lost_best_checkpoint_is_said_at_the_start(tmp_path, caplog):
    with checkpointer(tmp_path, keep=2, metric="f1") as saver:
        save(saver, {2: 0.9, 3: 0.7, 4: 0.6})
    for path in (tmp_path / "2").glob("*/**/d/*"):
        path.write_bytes(b"")
    with checkpointer(tmp_path, keep=2, metric="f1") as saver:
        run = make_run(saver)
        state, progress, _ = runs.start(run.plan, saver, run.metric)
        assert value(state) == 4 and progress.best.step == 3 and progress.best.value == 0.7
        assert "of step 2 (f1 0.9000), is damaged or gone; the next best is that of step 3" in caplog.text


@pytest.mark.parametrize(("then", "now"), [({"validation": "a"}, {"validation": "b"}), ({}, {"validation": "a"})])
def test_other_validation_data_are_refused_by_name(tmp_path, then, now):
    with checkpointer(tmp_path, metric="f1") as saver:
        save(saver, {2: 0.9}, held_out=then)
        run = make_run(saver, held_out=now)
        with pytest.raises(
            UserError, match=r"data\.validation \(path: rows/val.jsonl\): its content is not what the run"
        ):
            runs.start(run.plan, saver, run.metric)
        run = make_run(saver, held_out=then)
        assert value(runs.start(run.plan, saver, run.metric)[0]) == 2


def test_another_model_than_the_run_began_with_is_refused(tmp_path):
    with checkpointer(tmp_path, metric="f1") as saver:
        save(saver, {2: 0.9}, frozen=fingerprint({"base": jnp.ones(8)}))
        run = make_run(saver)
        run.plan.init_frozen.return_value = {"base": jnp.ones(8)}
        assert value(runs.start(run.plan, saver, run.metric)[0]) == 2
        run.plan.init_frozen.return_value = {"base": jnp.ones(8).at[3].set(1.0001)}
        with pytest.raises(UserError, match="model.init=base: the parameters that are frozen are not those"):
            runs.start(run.plan, saver, run.metric)
