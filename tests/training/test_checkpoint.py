"""Checkpoints: what is saved comes back bit for bit, on any mesh; which steps stay, and what is refused."""

from __future__ import annotations

import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.saved_states import abstract, assert_restores, checkpointer, make_state, save_steps, tree_digest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm.errors import RunFailure, UserError


def test_a_new_process_restores_arrays_containers_and_extra(tmp_path):
    extra = {"iterator": {"state": "é", "position": 2**40}, "best": 0.1, "patience": [1, None, True], "low": -1e300}
    state = make_state(3) | {"key": jax.random.key(7)}
    with checkpointer(tmp_path) as saver:
        assert (saver.latest_step(), saver.best_step(), saver.all_steps()) == (None, None, [])
        saver.save(3, state, extra)
        extra["best"] = 0.2  # after the call: must not reach the file
    with checkpointer(tmp_path) as saver:
        assert saver.latest_step() == 3 and saver.best_step() is None
        step, restored, found = saver.restore(abstract(state))
    assert step == 3 and found == extra | {"best": 0.1}
    assert jax.tree.structure(restored) == jax.tree.structure(state)  # optax's named tuples included
    assert restored["key"].dtype == state["key"].dtype
    for (path, one), other in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(state), strict=True):
        assert one.dtype == other.dtype, path
        if path != (jax.tree_util.DictKey("key"),):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes(), path
    assert jnp.array_equal(jax.random.key_data(restored["key"]), jax.random.key_data(state["key"]))


def test_the_next_step_may_donate_the_buffers_at_once(tmp_path):
    advance = jax.jit(lambda tree: jax.tree.map(lambda x: x + jnp.ones_like(x), tree), donate_argnums=0)
    state = make_state(1, (512, 1024))
    with checkpointer(tmp_path) as saver:
        saver.save(1, state, {"step": 1})
        for _ in range(3):
            state = advance(state)
        found, restored, _ = saver.restore(abstract(state))
    assert found == 1 and tree_digest(restored) == tree_digest(make_state(1, (512, 1024)))


@pytest.mark.parametrize("axes", [(8, 1), (2, 4), (1, 1)])
def test_another_mesh_restores_the_same_values(tmp_path, axes):
    auto = (AxisType.Auto,) * 2
    written_on = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=auto)
    state = {"w": jnp.arange(16 * 8, dtype=jnp.float32).reshape(16, 8), "b": jnp.arange(8.0)}
    specs = {"w": PartitionSpec("fsdp", "tensor"), "b": PartitionSpec()}
    state = {key: jax.device_put(x, NamedSharding(written_on, specs[key])) for key, x in state.items()}
    mesh = jax.make_mesh(axes, ("fsdp", "tensor"), axis_types=auto, devices=jax.devices()[: axes[0] * axes[1]])
    wanted = {
        "w": NamedSharding(mesh, PartitionSpec("tensor", "fsdp")),
        "b": NamedSharding(mesh, PartitionSpec("fsdp")),
    }
    with checkpointer(tmp_path) as saver:
        saver.save(1, state, {})
        _, restored, _ = saver.restore({key: abstract(x, wanted[key]) for key, x in state.items()})
    for key, x in restored.items():
        assert x.sharding == wanted[key]
        np.testing.assert_array_equal(x, np.asarray(state[key]))


@pytest.mark.parametrize(
    ("options", "metrics", "kept", "best"),
    [
        # Equal scores: the earliest is the best, as early stopping counts it. Not finite: never.
        ({"metric": "f1", "keep": 2}, [0.5, 0.9, float("nan"), 0.7, 0.9, float("inf"), 0.1], [2, 5, 7], 2),
        ({"metric": "f1", "keep": 1}, [0.5, 0.9, None, 0.7], [2, 4], 2),
        ({"metric": "f1", "keep": 1}, [0.5, 0.9, 0.9, 0.7], [2, 4], 2),
        ({"metric": "f1", "keep": 1}, [float("nan"), float("-inf"), None], [3], None),
        ({"metric": "loss", "keep": 1, "higher_is_better": False}, [3.0, float("-inf"), 1.0, 2.0], [3, 4], 3),
        ({"metric": None, "keep": 2}, [0.9, 0.1, 0.1, 0.1, 0.1], [3, 4, 5], None),
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, options, metrics, kept, best):
    for start in (0, 2):  # the ranks survive a restart
        with checkpointer(tmp_path, **options) as saver:
            for step, value in list(enumerate(metrics, 1))[start : start + 2 if start == 0 else None]:
                named = None if value is None else {str(options["metric"]): value, "other": float(-step)}
                saver.save(step, {"x": jnp.float32(step)}, {}, named)
    with checkpointer(tmp_path, **options) as saver:
        assert saver.all_steps() == kept
        assert (saver.latest_step(), saver.best_step()) == (len(metrics), best)
        for step in kept:
            assert saver.restore(abstract({"x": jnp.float32(0)}), step)[1]["x"] == step


def test_a_step_that_is_not_above_the_newest_is_refused(tmp_path):
    with checkpointer(tmp_path) as saver:
        saver.save(5, make_state(5), {"step": 5})
        for step in (5, 4):
            with pytest.raises(ValueError, match=f"cannot save step {step}: step 5 is there"):
                saver.save(step, make_state(step), {})
        assert_restores(saver, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s["params"]["head"].update(kernel=jnp.zeros((8, 17))),
            r"params/head/kernel: stored float32\[8, 16\], expected float32\[8, 17\]",
        ),
        (
            lambda s: s["params"]["head"].update(bias=jnp.zeros(16)),
            r"params/head/bias: stored bfloat16\[16\], expected float32\[16\]",
        ),
        (lambda s: s["params"].update(pooler=jnp.zeros(2)), r"params/pooler: stored nothing, expected float32\[2\]"),
        (lambda s: s.pop("rng"), r"rng: stored uint32\[2\], expected nothing"),
    ],
    ids=["shape", "dtype", "missing", "unread"],
)
def test_a_state_of_another_form_is_refused_by_parameter(tmp_path, change, message):
    save_steps(tmp_path, 1)
    state = make_state(1)
    change(state)
    with checkpointer(tmp_path) as saver:
        with pytest.raises(UserError, match=message) as error:
            saver.restore(abstract(state))
        assert str(error.value).count("stored") == 1  # only the leaf that differs
        assert_restores(saver, 1)


def test_a_missing_step_is_a_users_error_that_lists_the_steps(tmp_path):
    with checkpointer(tmp_path) as saver, pytest.raises(UserError, match="no checkpoint; found steps: none"):
        saver.restore(abstract(make_state(1)))
    save_steps(tmp_path, 1, 2)
    with checkpointer(tmp_path, 5) as saver, pytest.raises(UserError, match="no checkpoint of step 7.*steps: 1, 2"):
        saver.restore(abstract(make_state(1)), 7)


def test_an_unusable_directory_is_a_run_failure(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailure, match=f"{tmp_path}/file/checkpoints: cannot open the checkpoints"):
        checkpointer(tmp_path / "file" / "checkpoints")


def test_orbax_log_is_held_back_only_while_in_use(tmp_path):
    filters = list(logging.getLogger("absl").filters)
    with checkpointer(tmp_path):
        assert logging.getLogger("absl").filters != filters
    assert logging.getLogger("absl").filters == filters


def test_tree_digest_sees_every_difference():
    trees = [
        {"a": jnp.zeros(2)},
        {"b": jnp.zeros(2)},
        {"a": jnp.zeros((2, 1))},
        {"a": jnp.zeros(2, jnp.int32)},
        {"a": jnp.array([0.0, -0.0])},
        {"a": jnp.zeros(2), "b": jnp.zeros(())},
        {"a": {"b": jnp.zeros(2)}},
        {"a": jax.random.key(0)},
        {"a": jax.random.key(1)},
    ]
    for one, other in itertools.combinations(trees, 2):
        assert tree_digest(one) != tree_digest(other)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jnp.arange(16.0)
    assert tree_digest([jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))]) == tree_digest([np.asarray(x)])
