"""What a user gets wrong ends with one clear message, the right exit status, and nothing lost."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import yaml
from helpers.finetuning_runs import read_jsonl, rows, run, write_config, write_jsonl

from jaxlm.training import checkpoint


@pytest.fixture(scope="module")
def filled_disk(tmp_path_factory) -> tuple[Path, list[int], str]:
    """A run whose second checkpoint cannot be written, then the same command with room again.

    Returns the folder, the exit statuses and what was said.
    """
    folder = tmp_path_factory.mktemp("model")
    path = write_config(folder, train={"batch_size": 16, "epochs": 2}, data={"test": None})
    save = checkpoint.ocp.CheckpointManager.save

    def full(manager, step, *args, **kwargs):
        if step > 4:
            raise OSError(28, "No space left on device")
        return save(manager, step, *args, **kwargs)

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
            first = run("finetune", "--config", path)
        second = run("finetune", "--config", path)
    return folder, [first, second], said.getvalue()


@pytest.fixture(scope="module")
def model(filled_disk) -> Path:
    """A tiny HF-format BERT classifier of two labels."""
    return filled_disk[0] / "runs/tiny/model"


@pytest.fixture
def copied(model, tmp_path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "checkpoint"))


def from_checkpoint(folder: Path, checkpoint: Path, **task) -> Path:
    path = write_config(folder, task={"text": "text", "label": "label", **task})
    text = yaml.safe_load(path.read_text())
    text["model"] = {"init": str(checkpoint)}
    path.write_text(yaml.safe_dump(text))
    return path


def refused(capsys, *arguments, status: int = 2) -> str:
    """The message of a refused command: one line, no traceback."""
    assert run(*arguments) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_missing_column(tmp_path, capsys):
    message = refused(capsys, "finetune", "--config", write_config(tmp_path, task={"text": "txt"}))
    assert "train.jsonl: no column 'txt'" in message and "'text'" in message


def test_label_outside_the_label_set(tmp_path, capsys):
    bad = rows(6)
    bad[3]["label"] = "possitive"
    write_jsonl(tmp_path / "validation.jsonl", bad)
    message = refused(capsys, "finetune", "--config", write_config(tmp_path))
    assert "validation.jsonl, row 4" in message and "'possitive' is not one of the 2 labels (neg, pos)" in message
    assert "task.labels names labels that no training row has (data.on_bad_row=skip" in message


@pytest.mark.parametrize("empty", ["", "   "])
def test_empty_text_stops(tmp_path, capsys, empty):
    bad = rows(33)
    bad[5]["text"] = empty
    write_jsonl(tmp_path / "train.jsonl", bad)
    message = refused(capsys, "finetune", "--config", write_config(tmp_path))
    assert "train.jsonl, row 6: text is empty" in message


def test_what_is_skipped_cut_or_odd_is_said_and_counted(tmp_path, capsys):
    """Empty texts, where they may be skipped; texts longer than the limit; validation on the training data."""
    odd = rows(35)
    odd[5]["text"], odd[6]["text"], odd[7]["text"] = "", "   ", "good " * 500
    write_jsonl(tmp_path / "train.jsonl", odd)
    write_jsonl(tmp_path / "validation.jsonl", odd)
    path = write_config(tmp_path, train={"batch_size": 16, "epochs": 1}, data={"test": None, "on_bad_row": "skip"})
    assert run("finetune", "--config", path) == 0
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert summary["data"]["train"]["skipped"] == 2
    assert summary["throughput"]["examples"] == 33
    message = capsys.readouterr().err
    assert "1 of 33 texts longer than data.max_length=48: cut" in message
    assert "warning" in message and "the same" in message and "validation" in message


def test_invalid_json_names_the_row(tmp_path, capsys):
    path = write_config(tmp_path)
    lines = (tmp_path / "train.jsonl").read_text().split("\n")
    lines[2] = lines[2][:-3]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    message = refused(capsys, "finetune", "--config", path)
    assert "train.jsonl, row 3" in message and "JSON" in message


def test_wrong_encoding_names_the_byte(tmp_path, capsys):
    path = write_config(tmp_path)
    (tmp_path / "train.jsonl").write_bytes('{"text": "café", "label": "pos"}\n'.encode("latin-1"))
    message = refused(capsys, "finetune", "--config", path)
    assert "train.jsonl" in message and "byte offset 13" in message and "data.train.encoding" in message


def test_nan_regression_target(tmp_path, capsys):
    bad = [{**row, "label": float(i)} for i, row in enumerate(rows(8))]
    write_jsonl(tmp_path / "train.jsonl", [*bad, {"text": "what", "label": float("nan")}])
    path = write_config(tmp_path, task={"problem": "regression"})
    message = refused(capsys, "finetune", "--config", path)
    assert "train.jsonl, row 9" in message and "finite number" in message


def test_empty_file(tmp_path, capsys):
    path = write_config(tmp_path)
    (tmp_path / "train.jsonl").write_text("")
    assert "train.jsonl" in refused(capsys, "finetune", "--config", path)


def test_label_count_unlike_the_checkpoints_head(tmp_path, model, capsys):
    three = rows(12)
    three[0]["label"] = "mixed"
    write_jsonl(tmp_path / "train.jsonl", three)
    path = from_checkpoint(tmp_path, model)
    message = refused(capsys, "finetune", "--config", path)
    assert "its head has 2 labels" in message and "model.new_head=true" in message


def test_truncated_safetensors(tmp_path, copied, capsys):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    message = refused(capsys, "finetune", "--config", from_checkpoint(tmp_path, copied))
    assert "model.safetensors" in message and "truncated" in message


def test_pickled_checkpoint_is_refused_with_the_way_out(tmp_path, copied, capsys):
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    message = refused(capsys, "finetune", "--config", from_checkpoint(tmp_path, copied))
    assert "pytorch_model.bin" in message and "save_pretrained" in message


def test_unsupported_model_type_lists_the_supported(tmp_path, copied, capsys):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "model_type": "funnel"}))
    message = refused(capsys, "finetune", "--config", from_checkpoint(tmp_path, copied))
    assert "'funnel' is not supported" in message
    assert all(name in message for name in ("bert", "roberta", "xlm-roberta", "distilbert", "electra"))


def test_tokenizer_and_vocabulary_of_different_sizes(tmp_path, copied, capsys):
    tokenizer = json.loads((copied / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab.update({f"extra{i}": len(vocab) + i for i in range(5)})
    (copied / "tokenizer.json").write_text(json.dumps(tokenizer))
    message = refused(capsys, "finetune", "--config", from_checkpoint(tmp_path, copied))
    assert "the tokenizer has" in message and "vocab_size" in message


def test_sharded_index_may_not_leave_its_directory(tmp_path, copied, capsys):
    (copied / "model.safetensors").rename(tmp_path / "outside.safetensors")
    index = {"weight_map": {"bert.embeddings.word_embeddings.weight": "../outside.safetensors"}}
    (copied / "model.safetensors.index.json").write_text(json.dumps(index))
    message = refused(capsys, "finetune", "--config", from_checkpoint(tmp_path, copied))
    assert "../outside.safetensors" in message and "not a file of this directory" in message


def test_unwritable_run_directory(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    path = write_config(tmp_path)
    message = refused(capsys, "finetune", "--config", path, f"logging.directory={tmp_path}/file/runs")
    assert "logging.directory" in message


def test_full_disk_keeps_the_earlier_checkpoint(filled_disk):
    """The second checkpoint cannot be written: exit 1; with room again, the same command resumes from the first."""
    _, statuses, said = filled_disk
    assert statuses == [1, 0] and "Traceback" not in said
    assert "No space left on device" in said and "resumed at 4" in said


def test_divergence_stops_before_it_is_saved(tmp_path, capsys):
    path = write_config(
        tmp_path, optimizer={"learning_rate": 1e30, "schedule": "constant"}, train={"batch_size": 8, "epochs": 2}
    )
    message = refused(capsys, "finetune", "--config", path, status=1)
    assert "not finite" in message and "optimizer.learning_rate" in message
    found = re.search(r"step \d+: the .* is not finite \(its rows are those of .*train\.jsonl: ([\d, ]+)\)", message)
    assert found and len(found[1].split(", ")) == 8


def test_model_without_a_head_cannot_predict(tmp_path, copied, capsys):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if not k.startswith("classifier")}, copied / "model.safetensors")
    write_jsonl(tmp_path / "in.jsonl", [{"text": "good"}])
    files = ("--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    message = refused(capsys, "predict", "--run", copied, *files)
    assert "no trained head" in message and not (tmp_path / "out.jsonl").exists()


def test_a_bad_row_in_prediction_is_answered_with_an_error(tmp_path, model, capsys):
    bad = [None, ["good"], True, {"a": 1}]
    write_jsonl(tmp_path / "in.jsonl", [{"text": "good"}, {"txt": "bad"}, {"text": ""}, *({"text": t} for t in bad)])
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write('{"text": \n')
    output = tmp_path / "out.jsonl"
    files = ("--input", tmp_path / "in.jsonl", "--output", output)
    assert run("predict", "--run", model, *files) == 0
    good, other, empty, *rest = read_jsonl(output)
    assert {"label", "scores"} == set(good["prediction"]) == set(empty["prediction"])
    assert "row 2: no column 'text'" in other["error"] and other["txt"] == "bad"
    problems = ("missing", "found a list", "found a boolean", "found an object", "not valid JSON")
    for i, (row, problem) in enumerate(zip(rest, problems, strict=True), 4):
        assert f"row {i}" in row["error"] and problem in row["error"] and "prediction" not in row
    assert "6 of 8 rows could not be answered; their lines have an `error`; the first: " in capsys.readouterr().err
    output.unlink()
    message = refused(capsys, "predict", "--run", model, *files, "--on-bad-row", "stop")
    assert "row 2" in message and "'text'" in message
    assert not list(tmp_path.glob("*out.jsonl*"))
    write_jsonl(tmp_path / "in.jsonl", [{"txt": "good"}])
    assert "no column 'text'" in refused(capsys, "predict", "--run", model, *files)
    (tmp_path / "in.jsonl").write_bytes(b"")
    assert run("predict", "--run", model, *files) == 0
    assert "in.jsonl: 0 rows" in capsys.readouterr().err and output.read_bytes() == b""
    (tmp_path / "in.csv").write_bytes(b"text\ngood\ncaf\xe9\n")
    assert run("predict", "--run", model, "--input", tmp_path / "in.csv", "--output", output) == 0
    good, other = read_jsonl(output)
    assert "prediction" in good and "row 2 (line 3): not UTF-8: byte 0xe9" in other["error"]


def test_predictions_in_other_formats_and_places(tmp_path, model, capsys):
    """csv in and out; a column of the same name; a pipe and a link are written through."""
    source = tmp_path / "in.csv"
    source.write_text('text,prediction\n"good, fine",old\nbad,older\n')
    assert run("predict", "--run", model, "--input", source, "--output", tmp_path / "out.csv") == 0
    with (tmp_path / "out.csv").open(newline="") as file:
        first, _ = csv.DictReader(file)
    scores = ["prediction.scores.neg", "prediction.scores.pos"]
    assert list(first) == ["text", "input_prediction", "prediction.label", *scores, "error"]
    assert first["text"] == "good, fine" and first["input_prediction"] == "old"
    assert sum(float(first[name]) for name in scores) == pytest.approx(1.0)
    (tmp_path / "semicolons.csv").write_text("id;text\n1;good, fine\n")
    named = ("--input", tmp_path / "semicolons.csv", "--separator", ";", "--output", tmp_path / "out.csv")
    assert run("predict", "--run", model, *named) == 0
    assert (tmp_path / "out.csv").read_text().startswith("id;text;prediction.label;")
    target, link, pipe = tmp_path / "target.jsonl", tmp_path / "link.jsonl", tmp_path / "pipe"
    link.symlink_to(target)
    assert run("predict", "--run", model, "--input", source, "--output", link) == 0
    assert link.is_symlink() and len(read_jsonl(target)) == 2
    os.mkfifo(pipe)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    assert run("predict", "--run", model, "--input", source, "--output", pipe) == 0
    reader.join(60)
    assert [json.loads(line) for line in read[0].splitlines()] == read_jsonl(target) and pipe.is_fifo()
    assert run("predict", "--run", model, "--input", source, "--output", "/dev/null") == 0
    assert Path("/dev/null").is_char_device()
    source.write_text("good;1\n")
    files = ("--input", source, "--output", "-")
    assert '--separator ";"' in refused(capsys, "predict", "--run", model, *files)
    capsys.readouterr()
    assert run("predict", "--run", model, *files, "--separator", ";", "--columns", "text", "n", "--format", "csv") == 0
    assert json.loads(capsys.readouterr().out)["n"] == "1"


def test_sigterm_while_predictions_are_written_leaves_nothing(tmp_path):
    from jaxlm.errors import Interrupted
    from jaxlm.inference.output import write_output

    def lines():
        yield "{}\n"
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        yield "{}\n"

    with pytest.raises(Interrupted, match="SIGTERM"):
        write_output(str(tmp_path / "out.jsonl"), lines())
    assert not list(tmp_path.iterdir())


def test_unknown_metric_and_absent_hub_id(tmp_path, capsys):
    path = write_config(tmp_path)
    assert "expected one of accuracy, loss" in refused(capsys, "finetune", "--config", path, "train.metric=acuracy")
    config = from_checkpoint(tmp_path, tmp_path / "nowhere")
    assert "no directory" in refused(capsys, "finetune", "--config", config)
    # Not in the cache, and HF_HUB_OFFLINE is set: a failure of the network, not of the user.
    message = refused(capsys, "finetune", "--config", config, "model.init=bert-base-uncased", status=1)
    assert "could not be reached" in message
    log = tmp_path / "runs/tiny/metrics.jsonl"
    assert not log.exists() or not read_jsonl(log)
