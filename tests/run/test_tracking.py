"""Tracking: the record survives kills and resumes, and a log file holds nothing but lines."""

from __future__ import annotations

import io
import json
import logging
import math
import time

import pytest
from rich.console import Console

from jaxlm import cli
from jaxlm.console import printable, setup_logging, stderr_console
from jaxlm.errors import RunFailure, UserError
from jaxlm.run.tracking import Tracker, read_metrics


def console_to(file, *, terminal=False, width=40):
    return Console(file=file, force_terminal=terminal, width=width)


def lines(run_dir):
    return (run_dir / "metrics.jsonl").read_text("utf-8").splitlines()


def without_times(run_dir):
    return [{k: v for k, v in row.items() if k != "time"} for row in map(json.loads, lines(run_dir))]


def tracker(run_dir, resume_step=0, **kwargs):
    kwargs = {"total_steps": 100, "tensorboard": False, "console": console_to(io.StringIO())} | kwargs
    return Tracker(run_dir, resume_step=resume_step, **kwargs)


def run(run_dir, start, stop):
    """The steps of a run that logs every 10 steps and evaluates every 20."""
    with tracker(run_dir, start) as track:
        for step in range(start + 1, stop + 1):
            track.set_progress(step)
            if step % 10 == 0:
                track.log_train(step, {"loss": 1 / step, "learning_rate": 1e-5})
            if step % 20 == 0:
                track.log_evaluation(step, "validation", {"accuracy": step / 100})


def test_rows_are_json_with_the_values_given(tmp_path):
    with tracker(tmp_path) as track:
        track.log_train(10, {"loss": 0.5, "padding_share": 0.02})
        track.log_evaluation(10, "validation", {"accuracy": 0.75, "f1/na\u2028ïve": 0.5})
    train, evaluation = read_metrics(tmp_path)
    assert train.pop("time") <= evaluation.pop("time")
    assert train == {"kind": "train", "step": 10, "loss": 0.5, "padding_share": 0.02}
    assert evaluation == {
        "kind": "evaluation",
        "step": 10,
        "split": "validation",
        "accuracy": 0.75,
        "f1/na\u2028ïve": 0.5,
    }


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    track = tracker(tmp_path)
    track.log_train(10, {"loss": 0.5})
    assert len(lines(tmp_path)) == 1
    track.close()


@pytest.mark.parametrize("torn", ["", '{"kind": "train", "st', '{"kind": "train", "step": 55, "loss": 0.1'])
def test_resumed_equals_undisturbed(tmp_path, torn):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder in (whole, resumed):
        folder.mkdir()
    run(whole, 0, 100)
    run(resumed, 0, 57)
    with (resumed / "metrics.jsonl").open("a") as file:
        file.write(torn)
    run(resumed, 40, 100)
    assert without_times(resumed) == without_times(whole)
    assert [row["step"] for row in read_metrics(resumed) if row["kind"] == "train"] == list(range(10, 101, 10))


def test_resumed_before_the_first_checkpoint_starts_the_file_afresh(tmp_path):
    with tracker(tmp_path) as track:
        track.log_evaluation(0, "validation", {"accuracy": 0.5})
    with tracker(tmp_path) as track:
        track.log_evaluation(0, "validation", {"accuracy": 0.5})
    assert len(lines(tmp_path)) == 1


def test_an_evaluation_logged_again_replaces_the_first(tmp_path):
    run(tmp_path, 0, 100)
    with tracker(tmp_path, 100) as track:
        track.log_evaluation(40, "test", {"accuracy": 0.1})
    with tracker(tmp_path, 100) as track:
        track.log_evaluation(40, "test", {"accuracy": 0.2})
        track.log_evaluation(40, "other", {"accuracy": 0.3})
    at_40 = {row["split"]: row["accuracy"] for row in read_metrics(tmp_path) if "split" in row and row["step"] == 40}
    assert at_40 == {"validation": 0.4, "test": 0.2, "other": 0.3}
    assert len(lines(tmp_path)) == 10 + 5 + 2


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    with tracker(tmp_path) as track:
        track.log_train(10, {"loss": math.nan, "grad_norm": math.inf})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(lines(tmp_path)[0], parse_constant=refuse)
    assert row["loss"] is None and row["grad_norm"] is None
    assert math.isnan(read_metrics(tmp_path)[0]["loss"])


def test_reading(tmp_path):
    assert read_metrics(tmp_path) == []
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1]
    path.write_text('{"kind": "train", "step": 1}\noops\n{"kind": "train", "step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2.*oops"):
        read_metrics(tmp_path)


def test_other_processes_write_nothing(tmp_path):
    output = io.StringIO()
    with tracker(tmp_path, enabled=False, tensorboard=True, console=console_to(output)) as track:
        track.log_train(1, {"loss": 1.0})
        track.log_evaluation(1, "test", {"accuracy": 1.0})
        track.set_progress(2)
        track.log("hello")
    assert list(tmp_path.iterdir()) == []
    assert output.getvalue() == ""


def test_a_log_file_gets_one_plain_line_per_message(tmp_path):
    output = io.StringIO()
    with tracker(tmp_path, console=console_to(output), headlines=("recall_at_1", "accuracy")) as track:
        track.set_progress(5)
        values = {"loss": 0.6931, "learning_rate": 5e-5, "tokens_per_s": 12345.6, "padding_share": 0.021}
        track.log_train(50, values, seconds_left=3723.4)
        track.log_evaluation(50, "validation", {"accuracy": 0.75, "precision_macro": 0.7, "f1/[bold]": 0.5})
        track.log_evaluation(60, "validation", {"accuracy": 0.75, "recall_at_1": 0.5})
        track.log("[red]as it is[/red], however long the line may become when someone logs a path")
    text = output.getvalue()
    assert "\x1b" not in text and "\r" not in text
    train, evaluation, other, message = text.splitlines()
    for part in ("step 50/100", "loss 0.6931", "lr 5.00e-05", "12,346 tok/s", "padding 2.1%", "eta 1:02:03"):
        assert part in train
    assert evaluation.endswith("validation: accuracy 0.7500")
    assert other.endswith("validation: recall_at_1 0.5000  accuracy 0.7500")
    assert message.endswith("[red]as it is[/red], however long the line may become when someone logs a path")


def test_a_terminal_gets_a_progress_bar(tmp_path):
    output = io.StringIO()
    with tracker(tmp_path, 20, console=console_to(output, terminal=True, width=160)) as track:
        track.log_train(50, {"loss": 0.6931, "tokens_per_s": 1000})
        track.log("a message")
    text = output.getvalue()
    assert "50/100" in text and "loss 0.6931" in text and "a message" in text
    assert "\x1b[?25h" in text  # the cursor is shown again


def read_events(run_dir):
    """The scalars of all event files, read by another library's code: (tag, step) -> values in order."""
    from tensorboardX.proto import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    scalars = {}
    for path in sorted((run_dir / "tensorboard").iterdir()):
        data = path.read_bytes()
        assert data, path
        while data:  # uint64 length, uint32 crc, payload, uint32 crc
            size = int.from_bytes(data[:8], "little")
            payload = data[12 : 12 + size]
            sums = [int.from_bytes(part, "little") for part in (data[8:12], data[12 + size : 16 + size])]
            assert sums == [masked_crc32c(data[:8]), masked_crc32c(payload)]
            event = event_pb2.Event.FromString(payload)  # pyright: ignore[reportAttributeAccessIssue]
            assert abs(event.wall_time - time.time()) < 1000
            for value in event.summary.value:
                scalars.setdefault((value.tag, event.step), []).append(value.simple_value)
            data = data[16 + size :]
    return scalars


def test_tensorboard_holds_every_row_once_also_after_a_kill(tmp_path):
    killed = tracker(tmp_path, tensorboard=True)
    killed.log_train(10, {"loss": 0.5, "grad_norm": 1e300})
    killed.log_evaluation(10, "validation", {"accuracy": 0.75, "f1/spam": 0.5})
    expected = {("train/loss", 10): [0.5], ("train/grad_norm", 10): [math.inf], ("validation/accuracy", 10): [0.75]}
    assert read_events(tmp_path) == expected  # although nothing was closed
    killed.log_train(2**40, {"loss": 0.25})
    with tracker(tmp_path, 10, tensorboard=True) as track:  # step 10 was saved
        assert read_events(tmp_path) == expected
        track.log_train(20, {"loss": math.nan})
    killed.close()
    [value] = read_events(tmp_path).pop(("train/loss", 20))
    assert math.isnan(value) and len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_samples_stand_in_the_log_and_in_tensorboard_beside_their_references(tmp_path):
    output, sample = io.StringIO(), {"prompt": "word " * 99, "text": "ein\nHund", "reference": "Der Hund"}
    with tracker(tmp_path, tensorboard=True, console=console_to(output)) as track:
        track.log_samples(20, [{"prompt": "Once", "text": " upon"}, sample])
    plain, beside = output.getvalue().splitlines()
    assert plain.endswith("sample: 'Once' -> ' upon'")
    assert beside.endswith("word word ...' -> 'ein\\nHund' (reference: 'Der Hund')") and len(beside) < 300
    [first] = (tmp_path / "tensorboard").iterdir()
    content = first.read_bytes()
    assert b"samples/2" in content and b"**reference**\n\n    Der Hund" in content and b"    ein\n    Hund" in content
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 20, **sample}) + "\n" + json.dumps({"step": 40}) + "\n")
    with tracker(tmp_path, 20, tensorboard=True):  # a resumed run writes the file anew
        pass
    [again] = (tmp_path / "tensorboard").iterdir()
    assert b"samples/1" in again.read_bytes() and b"Der Hund" in again.read_bytes()


def test_tensorboard_never_stops_a_run(tmp_path, monkeypatch, caplog):
    (tmp_path / "tensorboard").write_text("a file in the folder's place")
    with tracker(tmp_path, tensorboard=True) as track:
        track.log_train(10, {"loss": 0.5})
    assert "events cannot be written" in caplog.text and len(lines(tmp_path)) == 1
    (tmp_path / "tensorboard").unlink()
    caplog.clear()
    with tracker(tmp_path, tensorboard=True) as track:
        monkeypatch.setattr("jaxlm.run.event_file._write", full)
        for step in (10, 20):
            track.log_train(step, {"loss": 0.5})
    assert caplog.text.count("No space left on device") == 1 and len(lines(tmp_path)) == 2


def full(*_):
    raise OSError(28, "No space left on device")


def test_a_full_disk_is_the_error_that_is_seen(tmp_path):
    with pytest.raises(RunFailure, match="cannot write .*metrics.jsonl: No space left"), tracker(tmp_path) as track:
        track._file.close()
        track._file = io.FileIO("/dev/full", "w")
        track.log_train(10, {"loss": 0.5})


def test_a_directory_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunFailure, match="missing"):
        tracker(tmp_path / "missing")


def test_closing_twice_is_harmless(tmp_path):
    track = tracker(tmp_path)
    track.close()
    track.close()
    track.log_train(1, {"loss": 1.0})
    assert lines(tmp_path) == []


@pytest.fixture
def jaxlm_logger():
    logger = logging.getLogger("jaxlm")
    before = logger.handlers[:], logger.level, logger.propagate
    yield logger
    logger.handlers[:], logger.level, logger.propagate = before


def test_logging_goes_to_stderr_once_as_plain_lines(capsys, jaxlm_logger):
    stderr_console.cache_clear()
    setup_logging()
    setup_logging()
    logger = logging.getLogger("jaxlm.data")
    logger.debug("unseen")
    logger.info("read %d rows of [bold]%s", 3, "x" * 200)
    logger.warning("careful")
    captured = capsys.readouterr()
    info, warning = captured.err.splitlines()
    assert captured.out == ""
    assert info[8:] == " read 3 rows of [bold]" + "x" * 200
    assert warning[8:] == " warning: careful"
    setup_logging(verbose=True)
    logger.debug("seen")
    assert "seen" in capsys.readouterr().err


def test_control_characters_of_data_never_reach_the_terminal(tmp_path, capsys, jaxlm_logger):
    escape, shown = "\x1b[2J\x9b31m\r\x07\u202e", "\\u001b[2J\\u009b31m\\u000d\\u0007\\u202e"
    assert printable(f"é 三\t{escape}\n\u2028") == f"é 三\t{shown}\n\u2028"
    assert json.loads(printable(json.dumps({"x": "\x7f\x9b"}, ensure_ascii=False))) == {"x": "\x7f\x9b"}
    output = io.StringIO()
    with tracker(tmp_path, console=console_to(output)) as track:
        track.log(f"sample: {escape}")
    assert output.getvalue().endswith(f"sample: {shown}\n")
    stderr_console.cache_clear()
    setup_logging()
    logging.getLogger("jaxlm").warning("row 3: %s", escape)
    assert cli._fail("error", f"label {escape}", 2) == 2
    said = capsys.readouterr().err
    assert said.count(shown) == 2 and "\x1b" not in said
