"""A whole run through the command line: train, resume, evaluate, predict, export."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.finetuning_runs import read_jsonl, rows, run, write_config, write_jsonl
from helpers.paths import REPOSITORY
from safetensors.numpy import load_file

ROOT = REPOSITORY


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Folder of a finished run, `runs/tiny`."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_config(folder, train={"batch_size": 16, "epochs": 8}, optimizer={"learning_rate": 2e-2})
    assert run("finetune", "--config", path) == 0
    return folder


def model_bytes(folder: Path, name: str = "tiny") -> bytes:
    return (folder / "runs" / name / "model" / "model.safetensors").read_bytes()


def test_learns_and_writes_the_run_directory(finished):
    made = finished / "runs" / "tiny"
    summary = json.loads((made / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["scores"]["validation"]["accuracy"] > 0.9
    assert summary["scores"]["test"]["accuracy"] > 0.8
    losses = [row["loss"] for row in read_jsonl(made / "metrics.jsonl") if row["kind"] == "train"]
    assert losses[0] > 0.5 and losses[-1] < 0.05, losses
    assert {p.name for p in made.iterdir()} >= {
        "config.yaml", "checkpoints", "metrics.jsonl", "summary.json", "report.html", "predictions", "model",
    }  # fmt: skip
    config = json.loads((made / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "neg", "1": "pos"}
    assert config["label2id"] == {"neg": 0, "pos": 1}


def test_predictions_keep_the_order_of_the_input(finished):
    made = read_jsonl(finished / "runs" / "tiny" / "predictions" / "test.jsonl")
    given = read_jsonl(finished / "test.jsonl")
    assert [{k: v for k, v in row.items() if k != "prediction"} for row in made] == given
    summary = json.loads((finished / "runs" / "tiny" / "summary.json").read_text())
    right = sum(row["prediction"]["label"] == row["label"] for row in made)
    assert right / len(made) == pytest.approx(summary["scores"]["test"]["accuracy"])


def test_finished_run_says_so_and_changes_nothing(finished, capsys):
    before = model_bytes(finished)
    assert run("finetune", "--config", finished / "config.yaml") == 0
    assert "is finished" in capsys.readouterr().err
    assert model_bytes(finished) == before


def test_other_settings_are_refused_by_name(finished, capsys):
    assert run("finetune", "--config", finished / "config.yaml", "train.batch_size=8") == 2
    message = capsys.readouterr().err
    assert "train.batch_size: 16 then, 8 now" in message and "train.restart=true" in message


def test_evaluate_equals_the_score_of_the_run(finished, capsys):
    summary = json.loads((finished / "runs" / "tiny" / "summary.json").read_text())
    assert run("evaluate", "--run", finished / "runs" / "tiny", "--split", "test") == 0
    captured = capsys.readouterr()
    scores = json.loads(captured.out)
    assert "runs/tiny on the split test: 19 rows" in captured.err
    assert scores["accuracy"] == summary["scores"]["test"]["accuracy"]
    assert scores["loss"] == pytest.approx(summary["scores"]["test"]["loss"], abs=1e-5)
    assert run("evaluate", "--run", finished / "runs" / "tiny", "--data", finished / "test.jsonl") == 0
    assert json.loads(capsys.readouterr().out) == scores


def test_evaluate_scores_groups_of_rows(finished, capsys):
    directory = finished / "runs" / "tiny"
    assert run("evaluate", "--run", directory, "--split", "test", "--slice", "label", "--resamples", 3) == 0
    captured = capsys.readouterr()
    scores = json.loads(captured.out)
    whole = json.loads((directory / "summary.json").read_text())["scores"]["test"]
    groups = scores["slices"]["label"]["groups"]
    right = sum(group["rows"] * group["scores"]["accuracy"] for group in groups.values())
    assert set(groups) == {"pos", "neg"} and right / 19 == pytest.approx(whole["accuracy"])
    assert scores["accuracy"] == whole["accuracy"] and "By label" in captured.err
    assert json.loads((directory / "slices/test.json").read_text()) == scores
    assert "Groups" in (directory / "slices/test.html").read_text()


def test_evaluate_heeds_overrides_and_keeps_the_model(finished, capsys):
    directory = finished / "runs" / "tiny"
    whole = json.loads((directory / "summary.json").read_text())["scores"]["test"]
    assert run("evaluate", "--run", directory, "data.max_length=4") == 0
    cut = json.loads(capsys.readouterr().out)  # of [CLS] and [SEP] two words are left
    assert cut["loss"] != pytest.approx(whole["loss"], rel=1e-3)
    assert run("evaluate", "--run", directory, "model.init=elsewhere") == 2
    assert "the model of a finished run is what it is" in capsys.readouterr().err
    other = ("--data", finished / "test.jsonl")
    for options, words in {
        ("task.problem=multiclass",): "the head of a finished run decides that",
        ("train.batch_size=3",): "it changes training",
        ("optimizer.learning_rate=1",): "it changes training",
        ("data.clean.leaks=drop",): "it changes training",
        ("data.validation.limit=3",): "with --split test, the settings of data.test are read",
        (*other, "data.test.limit=3"): "with --data, the settings of data.validation are read",
    }.items():
        assert run("evaluate", "--run", directory, *options) == 2
        error = capsys.readouterr().err
        assert words in error and f"override '{options[-1]}'" in error


def test_what_evaluate_advises_about_a_file_can_be_done(finished, tmp_path, capsys):
    command = ("evaluate", "--run", finished / "runs/tiny", "--data", tmp_path / "a.csv")
    for content, advice in (
        (b"good;pos\nbad;neg\n", "set data.validation.separator"),
        (b"good,pos\nbad,neg\n", "set data.validation.columns"),
        ("text,label\ncaf\u00e9,pos\n".encode("latin-1"), "set data.validation.encoding"),
        (b"text\ngood\n", "no column 'label'"),
    ):
        (tmp_path / "a.csv").write_bytes(content)
        assert run(*command) == 2 and advice in capsys.readouterr().err
    (tmp_path / "a.csv").write_bytes("caf\u00e9;pos\n".encode("latin-1"))
    keys = ("separator=;", "columns=[text,label]", "encoding=latin-1")
    assert run(*command, *(f"data.validation.{key}" for key in keys)) == 0


def test_predict_answers_a_file_and_a_pipe_alike(finished, capsys, monkeypatch, tmp_path):
    target = tmp_path / "out.jsonl"
    made = finished / "runs" / "tiny"
    assert run("predict", "--run", made, "--input", finished / "test.jsonl", "--output", target) == 0
    stored = read_jsonl(made / "predictions" / "test.jsonl")
    answered = read_jsonl(target)
    assert [row["prediction"]["label"] for row in answered] == [row["prediction"]["label"] for row in stored]
    for ours, theirs in zip(answered, stored, strict=True):
        assert ours["prediction"]["scores"] == pytest.approx(theirs["prediction"]["scores"], abs=1e-5)
        assert sum(ours["prediction"]["scores"].values()) == pytest.approx(1.0)

    stdin = io.TextIOWrapper(io.BytesIO((finished / "test.jsonl").read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    # A bare HF directory knows the labels from its config.json and is told the column.
    assert run("predict", "--run", made / "model", "--input", "-", "--output", "-", "--text", "text") == 0
    piped = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["prediction"]["label"] for row in piped] == [row["prediction"]["label"] for row in answered]


def test_export_and_inspect(finished, tmp_path, capsys):
    target = tmp_path / "exported"
    assert run("convert", "export", finished / "runs" / "tiny", target) == 0
    assert (target / "model.safetensors").read_bytes() == model_bytes(finished)
    assert run("convert", "export", finished / "runs" / "tiny", target) == 2
    assert "not empty" in capsys.readouterr().err
    assert run("convert", "inspect", target) == 0
    shown = capsys.readouterr().out
    assert "labels: neg, pos" in shown and "bert.encoder.layer.{i}.attention.self.query.weight" in shown


def test_a_run_initialises_another_with_its_head(finished, tmp_path):
    path = write_config(
        tmp_path, model={"init": str(finished / "runs" / "tiny")}, train={"steps": 1}, optimizer={"learning_rate": 1e-9}
    )
    text = yaml.safe_load(path.read_text())
    for key in ("family", "config", "train_tokenizer"):
        del text["model"][key]
    del text["train"]["epochs"], text["data"]["test"]
    path.write_text(yaml.safe_dump(text))
    assert run("finetune", "--config", path) == 0
    before = json.loads((finished / "runs" / "tiny" / "summary.json").read_text())["scores"]["validation"]
    after = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    assert after["scores"]["validation"]["accuracy"] == before["accuracy"]
    assert after["model"]["new_parameters"] == []


def test_first_steps_with_a_local_bert(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(
        "finetune", "--config", ROOT / "configs/finetune/first_steps.yaml", f"model.init={finished}/runs/tiny/model",
        "model.new_head=true",
    ) == 0  # fmt: skip
    summary = json.loads((tmp_path / "runs" / "first-steps" / "summary.json").read_text())
    assert summary["steps"] == 10
    assert summary["label_names"] == ["negative", "positive"]
    losses = [row["loss"] for row in read_jsonl(tmp_path / "runs/first-steps/metrics.jsonl") if row["kind"] == "train"]
    assert len(losses) == 10


def losses_and_weights(folder: Path, name: str, *overrides: str, **sections) -> tuple[list[float], dict]:
    path = write_config(folder, **sections)
    assert run("finetune", "--config", path, f"name={name}", *overrides) == 0
    log = [row for row in read_jsonl(folder / "runs" / name / "metrics.jsonl") if row["kind"] == "train"]
    return [row["loss"] for row in log], load_file(folder / "runs" / name / "model" / "model.safetensors")


NO_DROPOUT = {
    "family": "bert",
    "config": {"num_layers": 2, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64},
    "train_tokenizer": {"vocab_size": 200},
    "dropout": 0.0,
    "attention_dropout": 0.0,
}


@pytest.mark.slow
def test_packing_accumulation_mesh_and_compilation_knobs_do_not_change_training(tmp_path):
    """Without dropout, the same examples in the same steps give the same losses and weights in any layout."""
    sections = {"model": NO_DROPOUT, "train": {"batch_size": 24, "epochs": 1}, "optimizer": {"learning_rate": 1e-3}}
    reference, weights = losses_and_weights(tmp_path, "plain", **sections)
    tensor = ["mesh.preset=fsdp_tp", "mesh.fsdp=2", "mesh.tensor=2", "mesh.data=2"]
    variants = {
        "padded and accumulated": ["data.packing=false", "train.grad_accum_steps=3"],
        "split and scanned": [*tensor, "model.unroll=1", "model.remat=full"],
    }
    for name, overrides in variants.items():
        losses, other = losses_and_weights(tmp_path, name.replace(" ", "-"), *overrides, **sections)
        np.testing.assert_allclose(losses, reference, atol=2e-5, err_msg=name)
        for key in weights:
            np.testing.assert_allclose(other[key], weights[key], atol=2e-4, err_msg=f"{name}: {key}")


def problem_data(folder: Path, problem: str) -> dict:
    """Writes data of a problem; returns the task section of its config."""
    train, validation = rows(48), rows(16, seed=1)
    for row in train + validation:
        good = row["label"] == "pos"
        if problem == "pairs":
            row["second"] = "lovely plot"
        elif problem == "multiclass":
            row["label"] = 2 if row["id"] % 5 == 0 else int(good)
        elif problem == "multilabel":
            row["label"] = [name for name, on in (("nice", good), ("odd", row["id"] % 3 == 0)) if on]
        else:
            row["label"] = 4.5 if good else 0.5
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "validation.jsonl", validation)
    return {"text": ["text", "second"] if problem == "pairs" else "text", "label": "label"}


# Each form is trained in a way of its own, too.
TRAIN = {
    "pairs": {"epochs": 20, "eval_every": 2, "metric": "loss", "early_stopping": {"patience": 2}, "batch_size": 16},
    "multiclass": {"epochs": 1, "batch_size": 16},
    "multilabel": {"batch_tokens": 256, "epochs": 1},
    "regression": {"epochs": 1, "batch_size": 16},
}
CHANGES = {
    "pairs": ("optimizer.learning_rate=0.05",),
    "multilabel": ("data.max_length=12", "data.long_text=window", "data.stride=4", "task.pool_windows=max"),
}


@pytest.mark.parametrize(
    "problem",
    ["multiclass", "multilabel", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pairs", "regression"))],
)
def test_every_form_of_classification(tmp_path, problem):
    """Pairs stop early, and keep the best; batches of labels by tokens, over windows of long texts."""
    path = write_config(tmp_path, task=problem_data(tmp_path, problem), data={"test": None})
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "train": TRAIN[problem]}))
    assert run("finetune", "--config", path, *CHANGES.get(problem, ())) == 0
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    config = json.loads((tmp_path / "runs/tiny/model/config.json").read_text())
    predictions = read_jsonl(tmp_path / "runs/tiny/predictions/validation.jsonl")
    assert len(predictions) == 16
    prediction, scores = predictions[0]["prediction"], summary["scores"]["validation"]
    if problem == "pairs":
        assert summary["problem"] == "binary" and set(prediction["scores"]) == {"neg", "pos"}
        losses = {
            row["step"]: row["loss"]
            for row in read_jsonl(tmp_path / "runs/tiny/metrics.jsonl")
            if row["kind"] == "evaluation" and row["split"] == "validation"
        }
        best = min(losses, key=losses.get)
        assert summary["best_step"] == best and max(losses) == best + 2 * 2 < 60
        assert scores["loss"] == pytest.approx(losses[best], abs=1e-5)
    elif problem == "multiclass":
        assert summary["label_names"] == ["0", "1", "2"]
        assert set(prediction) == {"label", "scores"} and set(prediction["scores"]) == {"0", "1", "2"}
    elif problem == "multilabel":
        assert summary["label_names"] == ["nice", "odd"]
        assert config["problem_type"] == "multi_label_classification"
        assert set(prediction) == {"labels", "scores"} and "f1_micro" in scores
        assert summary["data"]["validation"]["truncated"] > 0
    else:
        assert config["problem_type"] == "regression" and len(config["id2label"]) == 1
        assert set(prediction) == {"score"} and "pearson" in scores


@pytest.mark.parametrize("override", ["data.packing=false", "train.batch_tokens=256"])
def test_batches_that_cannot_be_balanced_are_refused(tmp_path, capsys, override):
    assert run("finetune", "--config", write_config(tmp_path), "data.batch_order=balanced", override, "--dry-run") == 2
    assert "data.batch_order=balanced: expected train.batch_size and data.packing=true" in capsys.readouterr().err
