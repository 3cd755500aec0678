"""The run directory: opening and its errors, one writer at a time, writes that are whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.errors import RunFailure, UserError
from jaxlm.run.run_dir import RunDir

HOLD = """
import sys, time
from pathlib import Path
from jaxlm.run.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A run, and another process that holds it."""
    run = RunDir.open(tmp_path, "x", restart=False)
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield run, process
        process.kill()


def test_opening_makes_an_empty_directory(tmp_path):
    run = RunDir.open(tmp_path / "runs", "x", restart=False)
    assert run.path == tmp_path / "runs" / "x"
    assert list(run.path.iterdir()) == []  # the probe leaves nothing


def test_opening_again_keeps_the_content_and_fresh_moves_it_aside(tmp_path):
    for content in ("first", "second", "third"):
        run = RunDir.open(tmp_path, "x", restart=content != "first")
        assert not (run.path / "note").exists()
        run.write_text("note", content)
        assert (RunDir.open(tmp_path, "x", restart=False).path / "note").read_text() == content
    assert {path.name: (path / "note").read_text() for path in tmp_path.iterdir()} == {
        "x.old-1": "first",
        "x.old-2": "second",
        "x": "third",
    }


def test_a_second_process_is_told_who_holds_the_run(holder):
    run, process = holder
    with pytest.raises(UserError, match=rf"process {process.pid} is working on this run.*name="), run.lock():
        pass


def test_fresh_does_not_move_a_run_that_is_being_written(holder, tmp_path):
    with pytest.raises(UserError, match="is working on this run"):
        RunDir.open(tmp_path, "x", restart=True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_the_lock_is_free_after_its_holder_is_killed_and_after_use(holder):
    run, process = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(2):
        with run.lock():
            assert (run.path / "run.lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.parametrize("below", ["", "x"], ids=["in place of the run", "in place of its parent"])
def test_a_file_in_the_way_is_named(tmp_path, below):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").write_text("a file")
    with pytest.raises(UserError, match=r"a file stands.*runs/x.*logging\.directory="):
        RunDir.open(tmp_path / "runs" / below, "x", restart=False)
    assert (tmp_path / "runs" / "x").read_text() == "a file"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_place_that_nobody_can_write_is_named():
    with pytest.raises(UserError, match=r"^/proc/runs/x: the run directory cannot be written.*logging\.directory="):
        RunDir.open(Path("/proc/runs"), "x", restart=False)


def test_a_read_only_file_system_is_named_though_the_directory_exists(tmp_path):
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)], capture_output=True)
    if mount.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        with pytest.raises(UserError, match="cannot be written.*Read-only file system"):
            RunDir.open(tmp_path.parent, tmp_path.name, restart=False)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    run = RunDir.open(tmp_path, "x", restart=False)
    run.write_json("summary.json", {"status": "finished"})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailure, match=r"summary\.json: cannot be written \([\d,]+ bytes free.*No space left"):
        run.write_json("summary.json", {"status": "running"})
    assert run.finished
    assert [path.name for path in run.path.iterdir()] == ["summary.json"]


def test_json_is_standard_and_round_trips(tmp_path):
    run = RunDir.open(tmp_path, "x", restart=False)
    assert run.read_json("a/b.json") is None
    run.write_json("a/b.json", {"score": float("nan"), "scores": [1.5, float("-inf")], "name": "é"})
    text = (run.path / "a" / "b.json").read_text(encoding="utf-8")
    assert "é" in text and json.loads(text, parse_constant=pytest.fail) == {
        "score": None,
        "scores": [1.5, None],
        "name": "é",
    }
    assert run.read_json("a/b.json") == json.loads(text)
    (run.path / "a" / "b.json").write_text('{"score":')
    with pytest.raises(UserError, match=r"a/b\.json: expected JSON"):
        run.read_json("a/b.json")


@pytest.mark.parametrize(
    ("summary", "finished"), [(None, False), ({"status": "interrupted"}, False), ({"status": "finished"}, True)]
)
def test_finished_is_read_from_the_summary(tmp_path, summary, finished):
    run = RunDir.open(tmp_path, "x", restart=False)
    if summary is not None:
        run.write_json("summary.json", summary)
    assert run.finished is finished


def test_a_place_is_checked_without_writing(tmp_path, monkeypatch):
    """As opening would refuse it: a file in the way, a folder that may not be written."""
    RunDir(tmp_path / "new" / "x").check_place()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a file stands where the run directory"):
        RunDir(tmp_path / "file" / "x").check_place()
    monkeypatch.setattr(os, "access", lambda path, _mode: Path(path) != tmp_path)
    with pytest.raises(UserError, match=f"cannot be written .no permission to write in {tmp_path}"):
        RunDir(tmp_path / "new" / "x").check_place()
