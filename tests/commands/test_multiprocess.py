"""Several real processes on loopback: the same results as one, files once, and an end when one of them fails."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.finetuning_runs import read_jsonl, rows, write_config, write_jsonl
from helpers.paths import REPOSITORY
from helpers.pretraining_runs import write_pretraining
from helpers.writing_runs import write_pairs
from safetensors.numpy import load_file

SETTINGS = {
    "train": {"batch_size": 8, "epochs": 2, "eval_every": 4},
    "checkpoint": {"every": 3, "keep": 2},
    "logging": {"every": 1},
}
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}


def start(processes: int, *arguments: object, devices: int = 1) -> subprocess.Popen:
    """A command in several processes, through scripts/launch_local.py."""
    launcher = [sys.executable, str(REPOSITORY / "scripts/launch_local.py"), "-n", str(processes)]
    command = [*launcher, "--devices-per-process", str(devices), *map(str, arguments)]
    environ = {**os.environ, "JAXLM_HEARTBEAT": "30"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd=REPOSITORY, env=environ)


def launch(processes: int, *arguments: object, devices: int = 1, status: int = 0) -> tuple[str, str]:
    """Runs it to the end; returns what it printed, on both streams."""
    process = start(processes, *arguments, devices=devices)
    printed, errors = process.communicate(timeout=500)
    assert process.returncode == status, errors
    return printed, errors


def finetune(config: Path, name: str, processes: int, *changes: str, devices: int = 1, status: int = 0) -> str:
    arguments = ("finetune", "--config", config, f"name={name}", *changes)
    return launch(processes, *arguments, devices=devices, status=status)[1]


def record(run: Path) -> list[dict]:
    """metrics.jsonl without what time decides."""
    timed = ("time", "tokens_per_s", "examples_per_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(run / "metrics.jsonl")]


def assert_same_results(run: Path, other: Path, *, same_devices: bool = True) -> None:
    """Parameters, metrics and predictions of two runs, up to the order of sums.

    On another number of devices a batch has other empty rows, and so another share of padding. A softmax cancels the
    bias of keys: its gradient is rounding alone, which Adam scales up to steps of the learning rate. So it is, step by
    step, with the smallest entries of other parameters.
    """
    skipped = ("kind", "split") if same_devices else ("kind", "split", "padding_share")
    for name, value in load_file(run / "model/model.safetensors").items():
        expected = load_file(other / "model/model.safetensors")[name]
        atol = 1e-3 if name.endswith("key.bias") else 1e-4
        np.testing.assert_allclose(value, expected, atol=atol, rtol=2e-4, err_msg=name)
    found, expected = record(run), record(other)
    assert [(r["kind"], r["step"], r.get("split")) for r in found] == [
        (r["kind"], r["step"], r.get("split")) for r in expected
    ]
    for one, two in zip(found, expected, strict=True):
        assert {k: v for k, v in one.items() if k not in skipped} == pytest.approx(
            {k: v for k, v in two.items() if k not in skipped}, rel=2e-4, abs=1e-6
        )


def pids(launcher: subprocess.Popen) -> list[int]:
    """The processes of a launcher, by their numbers."""
    found = {}
    for child in Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split():
        environ = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        number = next(value for value in environ if value.startswith(b"JAX_PROCESS_ID="))
        found[int(number.removeprefix(b"JAX_PROCESS_ID="))] = int(child)
    return [found[i] for i in range(len(found))]


def wait_for_step(run: Path, step: int, process: subprocess.Popen) -> None:
    """Until metrics.jsonl speaks of `step`; fails if the command ends before."""
    log = run / "metrics.jsonl"
    while not (log.exists() and any(f'"step": {s},' in log.read_text() for s in range(step, step + 9))):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def disturb(
    number: int, signal_number: int, config: Path, name: str, processes: int, step: int, *changes: str
) -> tuple[int, str]:
    """Sends a signal to one process of a run at a step; returns the launcher's status and what was said."""
    process = start(processes, "finetune", "--config", config, f"name={name}", *changes)
    wait_for_step(config.parent / "runs" / name, step, process)
    os.kill(pids(process)[number], signal_number)
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def lines_of(number: int, errors: str) -> str:
    return "\n".join(line for line in errors.splitlines() if line.startswith(f"[{number}] "))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Same number of devices, dropout and accumulation included; every file is written once."""
    train = {**SETTINGS["train"], "grad_accum_steps": 2}
    config = write_config(tmp_path, **{**SETTINGS, "train": train})
    errors = finetune(config, "two", 2)
    assert "process 0 of 2" in errors and "step" not in lines_of(1, errors), errors
    finetune(config, "one", 1, devices=2)
    runs = tmp_path / "runs"
    assert_same_results(runs / "two", runs / "one")
    one, two = ({str(p.relative_to(runs / n)) for p in (runs / n).rglob("*") if p.is_file()} for n in ("one", "two"))
    assert {name for name in one ^ two if not name.startswith("checkpoints/")} == set()
    summaries = [json.loads((runs / name / "summary.json").read_text()) for name in ("one", "two")]
    assert [summary["environment"]["processes"] for summary in summaries] == [1, 2]
    assert summaries[0]["data"] == summaries[1]["data"]
    predictions = [read_jsonl(runs / name / "predictions/test.jsonl") for name in ("one", "two")]
    assert [row["id"] for row in predictions[1]] == list(range(19))
    assert_same_predictions(*predictions)


@pytest.mark.slow
def test_folds_of_skewed_rows_on_two_processes_equal_those_on_one(tmp_path):
    """Samplers, copies, thresholds and temperatures are the same wherever rows are read."""
    config = write_config(
        tmp_path,
        task={"class_weights": "sqrt", "threshold": "tuned", "calibration": "temperature"},
        data={"validation": None, "test": None, "max_shapes": 1, "sampling": "balanced", "augment": {"delete": 0.2}},
        train={"batch_size": 8, "epochs": 1, "ema": 0.9, "folds": 2},
        logging={"every": 4, "tensorboard": False},
    )
    finetune(config, "two", 2)
    finetune(config, "one", 1, devices=2)
    runs = [tmp_path / "runs" / name for name in ("one", "two")]
    summaries = [json.loads((run / "summary.json").read_text())["scores"] for run in runs]
    assert summaries[1]["validation"] == pytest.approx(summaries[0]["validation"], rel=1e-4)
    found = [read_jsonl(run / "predictions/out_of_fold.jsonl") for run in runs]
    assert len(found[0]) == 64
    assert_same_predictions(*found)


def assert_same_predictions(one: list[dict], two: list[dict]) -> None:
    assert [row["prediction"]["label"] for row in one] == [row["prediction"]["label"] for row in two]
    for first, second in zip(one, two, strict=True):
        assert first["prediction"]["scores"] == pytest.approx(second["prediction"]["scores"], abs=1e-4)


@pytest.mark.slow
def test_evaluate_and_predict_with_other_numbers_of_processes(tmp_path):
    config = write_config(tmp_path, **SETTINGS)
    finetune(config, "tiny", 2, "mesh.preset=fsdp", "mesh.fsdp=2")
    run = tmp_path / "runs/tiny"
    scores = json.loads((run / "summary.json").read_text())["scores"]["test"]
    printed, _ = launch(3, "evaluate", "--run", run)
    # Gloo, which carries the collectives of CPUs, writes into standard output, too.
    lines = [line.removeprefix("[0] ") for line in printed.splitlines() if "[Gloo]" not in line]
    assert json.loads("\n".join(lines)) == pytest.approx(scores, rel=1e-4)
    output = tmp_path / "predictions.jsonl"
    launch(3, "predict", "--run", run, "--input", tmp_path / "test.jsonl", "--output", output)
    assert_same_predictions(read_jsonl(output), read_jsonl(run / "predictions/test.jsonl"))


@pytest.mark.slow
def test_texts_that_several_processes_write_equal_those_of_one(tmp_path):
    """In the loop by beams, and by `predict` with another number of processes, in the order of the rows."""
    settings = {**SETTINGS, "mesh": {"preset": "fsdp", "fsdp": 2}}
    config = write_pairs(tmp_path, "translation", "t5", **settings, generation={"num_beams": 2, "max_new_tokens": 12})
    finetune(config, "two", 2)
    finetune(config, "one", 1, devices=2)
    runs = tmp_path / "runs"
    assert_same_results(runs / "two", runs / "one")
    written = [read_jsonl(runs / name / "predictions/test.jsonl") for name in ("two", "one")]
    assert written[0] == written[1] and len(written[0]) == 9
    asked = ("predict", "--run", runs / "two", "--input", tmp_path / "train.jsonl", "generation.num_beams=1")
    for processes in (1, 3):
        launch(processes, *asked, "mesh.preset=ddp", "--output", tmp_path / f"by_{processes}.jsonl")
    one, three = (read_jsonl(tmp_path / f"by_{processes}.jsonl") for processes in (1, 3))
    assert one == three and [row["en"] for row in one] == [row["en"] for row in read_jsonl(tmp_path / "train.jsonl")]
    assert len({row["prediction"]["text"] for row in one}) > 1


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"preset": "fsdp", "fsdp": 2, "data": 2}, {"preset": "tp", "tensor": 4}])
def test_pretraining_on_four_processes_equals_one(tmp_path, mesh):
    """Tokenizer and token cache included; with tensor=4, all processes hold parts of the same rows."""
    settings = {"samples": {"prompts": ["the film ", "a story "]}}
    sections = {"task": settings, "generation": {"max_new_tokens": 12}, "data": {"clean": {"deduplicate": True}}}
    config = write_pretraining(tmp_path, "causal_lm", mesh=mesh, **sections)
    launch(4, "pretrain", "--config", config, "name=four")
    launch(1, "pretrain", "--config", config, "name=one", devices=4)
    runs = tmp_path / "runs"
    assert_same_results(runs / "four", runs / "one")
    assert read_jsonl(runs / "four/samples.jsonl") == read_jsonl(runs / "one/samples.jsonl")
    assert len(read_jsonl(runs / "four/samples.jsonl")) > 0


@pytest.mark.slow
@pytest.mark.parametrize("number, processes", [(0, 2), (2, 3)])
def test_a_killed_process_stops_the_others(tmp_path, number, processes):
    config = write_config(tmp_path, **{**SETTINGS, "train": {"batch_size": 8, "epochs": 100, "eval_every": 50}})
    status, errors = disturb(number, signal.SIGKILL, config, "killed", processes, 4)
    assert status == 128 + signal.SIGKILL, errors
    for other in set(range(processes)) - {number}:
        said = lines_of(other, errors)
        assert "failed: " in said and "has stopped" in said and "Start the same command again" in said, errors
    assert "resumes from the last checkpoint" in errors


@pytest.mark.slow
def test_a_process_that_hangs_stops_the_others(tmp_path):
    config = write_config(tmp_path, **{**SETTINGS, "train": {"batch_size": 8, "epochs": 100, "eval_every": 50}})
    process = start(2, "finetune", "--config", config)
    wait_for_step(tmp_path / "runs/tiny", 4, process)
    [worker] = Path(f"/proc/{(parent := pids(process)[1])}/task/{parent}/children").read_text().split()
    os.kill(int(worker), signal.SIGSTOP)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1, errors
    assert "failed: another process has stopped, or does not answer" in lines_of(0, errors), errors


HANGING = """
import threading
import jax
from jaxlm.run import step_watch
from jaxlm.training.plan import Plan

step_watch._TICK, step_watch.FLOOR, step_watch._LINGER = 0.1, 3.0, 5.0
real, calls = Plan.to_device, []

def to_device(plan, batch):
    calls.append(0)
    if jax.process_index() == 1 and len(calls) == 15:
        threading.Event().wait()
    return real(plan, batch)

Plan.to_device = to_device
"""


@pytest.mark.slow
def test_a_step_that_does_not_end_stops_all_with_their_stacks(tmp_path):
    """One process waits for ever in Python, the other for it in a collective; their heartbeats go on."""
    path = write_config(tmp_path, **SETTINGS)
    (tmp_path / "hanging.py").write_text(HANGING)
    changes = ("data.max_shapes=1", "train.hang_factor=5")
    errors = finetune(path, "tiny", 2, *changes, "--plugin", str(tmp_path / "hanging.py"), status=1)
    for number in (0, 1):
        said = lines_of(number, errors)
        assert re.search(r"failed: process \d: step \d+ has not ended within \d+ s; .*train.hang_factor=5", said), (
            errors
        )
        assert "Thread 0x" in said and "step_watch.py" in said
    assert "in to_device" in lines_of(1, errors)
    assert "resumed at 12" in finetune(path, "tiny", 2, *changes)


@pytest.mark.slow
def test_restarts_with_other_numbers_of_processes_end_as_an_undisturbed_run(tmp_path):
    settings = {**SETTINGS, "train": {"batch_size": 8, "epochs": 12, "eval_every": 16}}
    # One process on one device would round its products, where the CPU is fast at that.
    config = write_config(tmp_path, **settings, model={**NO_DROPOUT, "matmul": "float32"})
    finetune(config, "undisturbed", 1, devices=2)
    status, errors = disturb(1, signal.SIGKILL, config, "disturbed", 2, 10)
    assert status == 128 + signal.SIGKILL, errors
    status, errors = disturb(0, signal.SIGTERM, config, "disturbed", 1, 30)
    assert status == 3 and "resumed at" in errors, errors
    status, errors = disturb(3, signal.SIGKILL, config, "disturbed", 4, 60)
    assert status == 128 + signal.SIGKILL and "resumed at" in errors, errors
    assert "resumed at" in finetune(config, "disturbed", 2)
    assert_same_results(tmp_path / "runs/disturbed", tmp_path / "runs/undisturbed", same_devices=False)


@pytest.mark.slow
@pytest.mark.parametrize("number, name", [(0, signal.SIGTERM), (1, signal.SIGINT)])
def test_a_signal_to_one_process_saves_and_ends_all(tmp_path, number, name):
    settings = {**SETTINGS, "train": {"batch_size": 8, "epochs": 100, "eval_every": 50}, "checkpoint": {"every": 1000}}
    config = write_config(tmp_path, **settings)
    status, errors = disturb(number, name, config, "tiny", 2, 4)
    assert status == 3, errors
    said = [line for line in errors.splitlines() if "saved at step" in line]
    assert len(said) == 2 and len({line.split("saved at step")[1] for line in said}) == 1, errors
    step = int(said[0].split("saved at step ")[1].split()[0])
    assert f"resumed at {step}" in disturb(0, signal.SIGTERM, config, "tiny", 2, step + 1)[1]


def start_apart(folders: list[Path], config: Path) -> list[subprocess.Popen]:
    """Two processes as two hosts have them: each with files of its own below its working directory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    started = []
    for number, folder in enumerate(folders):
        flags = ["--coordinator", address, "--num-processes", "2", "--process-id", str(number)]
        command = [sys.executable, "-m", "jaxlm", "finetune", "--config", str(config), *flags]
        environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(REPOSITORY)}
        started.append(subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.PIPE, text=True))
    return started


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, row, message",
    [
        (1, {"label": None}, "train.jsonl"),
        (0, {"label": "pos"}, "the training data.* differ between processes: those of process 1"),
        (0, {"text": "other"}, "data.train: what process 1 reads is not what .* learned from other texts"),
    ],
)
def test_what_one_process_alone_finds_wrong_stops_both(tmp_path, number, row, message):
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for folder in folders:
        write_config(folder)
    write_jsonl(folders[number] / "train.jsonl", [*rows(63), {**rows(64)[-1], **row}])
    splits = {name: {"path": f"{name}.jsonl"} for name in ("train", "validation", "test")}
    config = write_config(tmp_path, data=splits)
    processes = start_apart(folders, config)
    said = [process.communicate(timeout=300)[1] for process in processes]
    for process, errors in zip(processes, said, strict=True):
        assert process.returncode == 2, errors
        assert re.search(message, errors) and "Traceback" not in errors, errors
