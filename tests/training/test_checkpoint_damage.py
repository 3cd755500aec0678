"""Damaged, half-written and killed checkpoints: none passes unnoticed, and an earlier one goes on."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import orbax.checkpoint as ocp
import pytest
from helpers.forked import Forked
from helpers.saved_states import (
    ROOT,
    abstract,
    assert_restores,
    checkpointer,
    keep_saving,
    make_state,
    names,
    no_space,
    save_steps,
)

from jaxlm.errors import RunFailure
from jaxlm.training import manifest, orbax_noise
from jaxlm.training.step_folders import step_numbers


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


@pytest.mark.parametrize("lost", [manifest.FILE, "d"])
def test_where_no_checkpoint_is_complete_the_run_stops_and_nothing_is_deleted(tmp_path, lost):
    save_steps(tmp_path, 1, 2)
    for step in (1, 2):
        next(path for path in (tmp_path / str(step)).glob(f"**/{lost}{'/*' if lost == 'd' else ''}")).unlink()
    before = sorted(path for path in tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(RunFailure, match=r"no checkpoint is complete \(step 1: .*; step 2: .*train.restart=true"):
            checkpointer(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("how", ["truncate", "manifest", "data gone", "gone"])
def test_of_the_best_checkpoints_the_first_sound_one_is_found(tmp_path, caplog, how):
    with checkpointer(tmp_path, keep=3, metric="f1") as saver:
        for step, value in enumerate((0.5, 0.9, 0.7, 0.1), 1):
            saver.save(step, make_state(step), {"step": step}, {"f1": value})
        saver.wait()
        if how == "truncate":
            damage(tmp_path, 2, how)
        elif how == "gone":
            shutil.rmtree(tmp_path / "2")
        else:
            next((tmp_path / "2").glob(manifest.FILE if how == "manifest" else "*/**/d/*")).write_bytes(b"")
        assert saver.best_sound_step(in_memory=4) == 3
        assert ("2: damaged checkpoint: " in caplog.text) == (how != "gone")
        assert saver.best_step() == 3 and 2 not in saver.all_steps()
        saver.save(5, make_state(5), {"step": 5}, {"f1": 0.2}, wait=True)
        assert names(tmp_path) == ["1", "3", "5"]


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
    message = rf"^{tmp_path}: saving step 2 failed: .*No space.*\([\d,]+ bytes free there\); .* of step 1 is intact"
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


def test_closing_after_a_failed_save_tells_of_it_once(tmp_path, monkeypatch):
    """On a full disk Orbax's manager fails again when it is closed."""
    saver = checkpointer(tmp_path)
    monkeypatch.setattr(manifest, "write", no_space)
    saver.save(1, make_state(1), {})
    close = saver._manager.close
    monkeypatch.setattr(saver._manager, "close", lambda: (close(), no_space()))
    with pytest.raises(RunFailure, match="saving step 1 failed"):
        saver.close()


def test_what_tensorstore_reports_to_a_closed_loop_is_not_shown(monkeypatch):
    """Its threads print by either hook of Python's; other errors are shown as ever."""
    shown: list[BaseException | None] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: shown.append(error))
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_value))
    orbax_noise._hold_closed_loops_back.cache_clear()
    orbax_noise.hold_back()
    loop = asyncio.new_event_loop()
    loop.close()
    for callback in (lambda: loop.call_soon_threadsafe(print), no_space):
        try:
            callback()
        except (RuntimeError, OSError) as error:
            sys.excepthook(type(error), error, error.__traceback__)
            sys.unraisablehook(SimpleNamespace(exc_value=error, exc_traceback=error.__traceback__))
    assert [type(error) for error in shown] == [OSError, OSError]
    orbax_noise.release()
    orbax_noise._hold_closed_loops_back.cache_clear()  # the hooks are gone with this test


def test_a_failed_save_that_was_told_of_stays_the_error_when_closing_fails_again(tmp_path, monkeypatch):
    """As where Orbax's own thread meets the full disk first, and its manager raises that again at the end."""
    monkeypatch.setattr(manifest, "write", no_space)
    with pytest.raises(RunFailure, match="saving step 1 failed"), checkpointer(tmp_path) as saver:
        close = saver._manager.close
        monkeypatch.setattr(saver._manager, "close", lambda: (close(), no_space()))
        saver.save(1, make_state(1), {})
        saver.wait()
    monkeypatch.undo()
    with pytest.raises(RunFailure, match="closing the checkpoints failed"), checkpointer(tmp_path / "b") as saver:
        close = saver._manager.close
        monkeypatch.setattr(saver._manager, "close", lambda: (close(), no_space()))


FILLER = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from helpers.saved_states import make_state
from jaxlm.training.checkpoint import Checkpointer
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


def test_a_writer_killed_at_any_moment_leaves_a_sound_checkpoint(tmp_path):
    rng, directory, reached = random.Random(0), tmp_path / "run", 0
    for _ in range(5):
        process = Forked(tmp_path / "log", keep_saving, directory)
        process.wait_for(lambda: any(step > reached for step in step_numbers(directory)))  # noqa: B023
        time.sleep(rng.uniform(0, 0.5))
        process.send(signal.SIGKILL)
        assert process.finish()[0] == -signal.SIGKILL
        with checkpointer(directory, metric="f1") as saver:
            newest, best = saver.latest_step(), saver.best_step()
            assert newest is not None and best is not None and newest > reached
            assert_restores(saver, newest)
            assert saver.latest_step() == newest  # not a fallback
            assert_restores(saver, best, best)
            reached = newest
