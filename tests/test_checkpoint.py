"""Checkpoints: what is saved comes back bit for bit, on any mesh; damage, full disks and kills never pass unnoticed."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxlm import manifest
from jaxlm.checkpoint import Checkpointer
from jaxlm.errors import RunFailure, UserError
from jaxlm.manifest import tree_digest

ROOT = Path(__file__).resolve().parents[1]


def make_state(step: int, shape: tuple[int, ...] = (8, 16)) -> dict:
    """A train state that is a function of its step; every leaf differs from every other."""
    rng = np.random.default_rng(step)
    params = {
        "head": {
            "kernel": jnp.asarray(rng.standard_normal(shape, np.float32)),
            "bias": jnp.asarray(rng.standard_normal(shape[-1:]), jnp.bfloat16),
        }
    }
    moments = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype) if x.ndim else jnp.int32(step),
        optax.adamw(1e-3).init(params),
    )
    return {
        "params": params,
        "opt_state": moments,
        "rng": jax.random.key_data(jax.random.key(step)),
        "step": jnp.int32(step),
    }


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def checkpointer(directory: Path, keep: int = 1, metric: str | None = None, **options) -> Checkpointer:
    return Checkpointer(directory, keep=keep, metric=metric, **options)


def save_steps(directory: Path, *steps: int, keep: int = 5) -> None:
    with checkpointer(directory, keep) as saver:
        for step in steps:
            saver.save(step, make_state(step), {"step": step})


def assert_restores(saver: Checkpointer, expected: int, step: int | None = None) -> None:
    found, state, extra = saver.restore(abstract(make_state(expected)), step)
    assert found == expected and extra == {"step": expected}
    assert tree_digest(state) == tree_digest(make_state(expected))


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


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


def test_a_flipped_bit_in_any_file_is_found(tmp_path, caplog):
    save_steps(tmp_path / "good", 1, 2)
    files = [
        path.relative_to(tmp_path / "good")
        for path in sorted((tmp_path / "good" / "2").rglob("*"))
        if path.is_file() and path.stat().st_size
    ]
    assert len(files) > 8
    rng = random.Random(0)
    for file in files:
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        content = bytearray((tmp_path / "bad" / file).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(7)
        (tmp_path / "bad" / file).write_bytes(content)
        caplog.clear()
        with checkpointer(tmp_path / "bad", 5) as saver:
            if len(file.parts) == 2 and file.name != manifest.FILE:  # Orbax's notes, which hold no data
                assert_restores(saver, 2)
                assert not caplog.records
            else:
                assert_restores(saver, 1)
                [record] = caplog.records
                assert record.levelname == "WARNING" and file.name in record.getMessage()
                assert f"{tmp_path}/bad/2: damaged" in record.getMessage()
        shutil.rmtree(tmp_path / "bad")


def damage(directory: Path, step: int, how: str) -> str:
    """Damages the largest data file of a step, and returns its name."""
    file = max((directory / str(step)).glob("*/**/d/*"), key=lambda path: path.stat().st_size)
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if how == "truncate" else b"\0" * len(content))
    return file.name


def test_an_edited_manifest_is_found(tmp_path, caplog):
    save_steps(tmp_path, 1, 2)
    file = tmp_path / "2" / manifest.FILE
    file.write_bytes(file.read_bytes().replace(b"float32", b"float64"))  # still JSON
    with checkpointer(tmp_path, 5) as saver:
        assert_restores(saver, 1)
    assert "manifest.json is not what was written" in caplog.text


@pytest.mark.parametrize(("how", "words"), [("truncate", "bytes instead of"), ("zero", "SHA-256 differs")])
def test_training_goes_on_from_the_step_before_the_damage(tmp_path, caplog, how, words):
    save_steps(tmp_path, 1, 2, 3, 4)
    damaged = [damage(tmp_path, step, how) for step in (3, 4)]
    with checkpointer(tmp_path, 5) as saver:
        assert_restores(saver, 2)
        assert all(name in caplog.text for name in damaged) and caplog.text.count(words) == 2
        assert saver.all_steps() == [1, 2] and names(tmp_path) == ["1", "2", "3", "4"]
        saver.save(3, make_state(3), {"step": 3})
        assert_restores(saver, 3)
        assert names(tmp_path) == ["1", "2", "3"]


def test_damage_without_an_older_checkpoint_stops_the_run_and_deletes_nothing(tmp_path):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        damage(tmp_path, step, "truncate")
    with checkpointer(tmp_path, 5) as saver:
        with pytest.raises(RunFailure, match="no sound checkpoint: damaged: step 2, step 1"):
            saver.restore(abstract(make_state(2)))
        with pytest.raises(RunFailure, match="damaged: step 1"):
            saver.restore(abstract(make_state(1)), 1)
    assert names(tmp_path) == ["1", "2"]


@pytest.mark.parametrize("lost", ["manifest", "data", "everything"])
def test_half_deleted_steps_are_removed_on_start(tmp_path, lost, caplog):
    save_steps(tmp_path, 1, 2)
    if lost == "everything":
        shutil.rmtree(tmp_path / "2")
        (tmp_path / "2").mkdir()
    else:
        next((tmp_path / "2").glob(manifest.FILE if lost == "manifest" else "*/**/d/*")).unlink()
    with checkpointer(tmp_path) as saver:
        assert names(tmp_path) == ["1"] and "2: incomplete checkpoint removed" in caplog.text
        assert_restores(saver, 1)
        saver.save(2, make_state(2), {"step": 2})
        assert_restores(saver, 2)


def test_the_only_checkpoint_is_never_deleted_on_start(tmp_path):
    save_steps(tmp_path, 1)
    (tmp_path / "1" / manifest.FILE).unlink()
    data = {path.name: path.read_bytes() for path in tmp_path.rglob("d/*")}
    with checkpointer(tmp_path) as saver:
        assert saver.latest_step() is None
        assert {path.name: path.read_bytes() for path in (tmp_path / "incomplete-1").rglob("d/*")} == data
        saver.save(1, make_state(1), {"step": 1})
        assert_restores(saver, 1)


def test_what_a_killed_save_left_is_removed_on_start(tmp_path):
    save_steps(tmp_path, 1)
    shutil.copytree(tmp_path / "1", tmp_path / f"2{ocp.utils.TMP_DIR_SUFFIX}")
    with checkpointer(tmp_path) as saver:
        assert names(tmp_path) == ["1"]
        saver.save(2, make_state(2), {"step": 2})
        assert_restores(saver, 2)


@pytest.mark.parametrize(
    "surface",
    [
        lambda s: s.wait(),
        lambda s: s.save(3, make_state(3), {}),
        lambda s: s.close(),
        lambda s: s.restore(abstract(make_state(1))),
    ],
    ids=["wait", "save", "close", "restore"],
)
def test_a_failed_background_save_surfaces_and_the_earlier_checkpoint_stays(tmp_path, monkeypatch, capfd, surface):
    saver = checkpointer(tmp_path, metric="f1", keep=1)
    saver.save(1, make_state(1), {"step": 1}, {"f1": 0.1}, wait=True)
    monkeypatch.setattr(manifest, "write", no_space)
    saver.save(2, make_state(2), {"step": 2}, {"f1": 0.9})  # once committed, it would replace step 1
    message = rf"^{tmp_path}: saving step 2 failed: .*No space left.*[\d,]+ were free there; .* of step 1 is intact"
    with pytest.raises(RunFailure, match=message):
        surface(saver)
    monkeypatch.undo()
    assert names(tmp_path) == ["1"] and "Traceback" not in capfd.readouterr().err  # Orbax would print two
    with checkpointer(tmp_path) as saver:
        assert_restores(saver, 1)


def test_a_failed_save_can_be_repeated_when_there_is_room(tmp_path, monkeypatch):
    with checkpointer(tmp_path) as saver:
        for target, name in ((ocp.CheckpointManager, "save"), (manifest, "write")):  # at once, and in the background
            with monkeypatch.context() as patch:
                patch.setattr(target, name, no_space)
                with pytest.raises(RunFailure, match="there is no earlier checkpoint"):
                    saver.save(1, make_state(1), {}, wait=True)
            assert saver.latest_step() is None
        saver.save(1, make_state(1), {"step": 1})
        assert_restores(saver, 1)


def test_a_repeated_save_replaces_what_the_failed_one_would_have(tmp_path, monkeypatch):
    with checkpointer(tmp_path, metric="f1") as saver:
        saver.save(1, make_state(1), {}, {"f1": 0.1}, wait=True)
        with monkeypatch.context() as patch, pytest.raises(RunFailure, match="the checkpoint of step 1 is intact"):
            patch.setattr(manifest, "write", no_space)
            saver.save(2, make_state(2), {}, {"f1": 0.9}, wait=True)
        saver.save(2, make_state(2), {"step": 2}, {"f1": 0.9}, wait=True)
        assert names(tmp_path) == ["2"]
        assert_restores(saver, 2)


def test_the_users_error_is_not_hidden_by_a_failed_save(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(manifest, "write", no_space)
    with pytest.raises(KeyError, match="first"), checkpointer(tmp_path) as saver:
        saver.save(1, make_state(1), {})
        raise KeyError("first")
    assert "saving step 1 failed" in caplog.text


FILLER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_checkpoint import make_state
from jaxlm.checkpoint import Checkpointer
with Checkpointer(Path(sys.argv[1]), keep=1, metric=None) as saver:
    saver.save(1, make_state(1), {"step": 1}, wait=True)
    saver.save(2, make_state(2, (1000, 1000)), {"step": 2})
"""


def test_a_full_disk(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        # In a process of its own: after the first error, Orbax leaves TensorStore's other writes to run into theirs.
        command = [sys.executable, "-c", FILLER, str(tmp_path / "run")]
        child = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
        assert child.returncode == 1
        assert "RunFailure: " in child.stderr and "saving step 2 failed" in child.stderr
        assert "No space left on device" in child.stderr and "the checkpoint of step 1 is intact" in child.stderr
        with checkpointer(tmp_path / "run") as saver:
            assert names(tmp_path / "run") == ["1"]
            assert_restores(saver, 1)
            saver.save(2, make_state(2), {"step": 2})
            assert_restores(saver, 2)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


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


WRITER = """
import itertools, sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_checkpoint import make_state
from jaxlm.checkpoint import Checkpointer
with Checkpointer(Path(sys.argv[1]), keep=1, metric="f1") as saver:
    print("open", flush=True)
    for step in itertools.count((saver.latest_step() or 0) + 1):
        saver.save(step, make_state(step), {"step": step}, {"f1": step % 7 / 7})
"""


def test_a_writer_killed_at_any_moment_leaves_a_sound_checkpoint(tmp_path):
    rng = random.Random(0)
    reached = 0
    for _ in range(5):
        command = [sys.executable, "-c", WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None and process.stdout.readline() == "open\n"
            deadline = time.monotonic() + 60
            while not (tmp_path / str(reached + 1)).exists() and not any(
                path.name.isdecimal() and int(path.name) > reached for path in tmp_path.iterdir()
            ):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.5))
            process.kill()
        with checkpointer(tmp_path, metric="f1") as saver:
            newest, best = saver.latest_step(), saver.best_step()
            assert newest is not None and best is not None and newest > reached
            assert_restores(saver, newest)
            assert saver.latest_step() == newest  # not a fallback
            assert_restores(saver, best, best)
            reached = newest
