"""Runs on skewed classes through the command line: weights, losses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.finetuning_runs import rows, run, write_config, write_jsonl
from helpers.tagging_runs import write_tagging


def skewed_config(folder: Path, **sections) -> Path:
    """60 rows of "neg", 12 of "pos" to train on."""
    made = [row for i, row in enumerate(rows(120)) if row["label"] == "neg" or i % 10 == 0]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / "train.jsonl", made)
    return write_config(folder, **sections)


@pytest.mark.slow
def test_a_run_with_every_correction(tmp_path, capsys):
    task = {"class_weights": "sqrt", "loss": "focal", "focal_gamma": 1.0, "logit_adjustment": 0.5}
    task["threshold"] = "tuned"
    path = skewed_config(tmp_path, task=task, train={"batch_size": 16, "epochs": 1}, data={"test": None})
    assert run("finetune", "--config", path, "data.sampling.temperature=2") == 0
    said = capsys.readouterr().err
    assert "task.class_weights, by class: neg" in said and "rows of an epoch: neg 60, pos 27" in said
    assert "data.sampling=temperature=2.0: an epoch is 6 steps on 87 rows, of 72" in said
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    weights = summary["class_weights"]
    assert weights["pos"] / weights["neg"] == pytest.approx((60 / 27) ** 0.5)
    assert summary["label_counts"] == {"neg": 60, "pos": 12} and summary["sampled_counts"] == {"neg": 60, "pos": 27}
    assert summary["steps"] == 6
    stored = json.loads((tmp_path / "runs/tiny/model/config.json").read_text())["decision_thresholds"]
    assert summary["decision_thresholds"] == stored and set(stored) == {"pos"}
    sections = json.loads((tmp_path / "runs/tiny/analysis.json").read_text())
    [training] = [section["content"] for section in sections if section["title"] == "Training rows by label"]
    assert training["columns"] == ["Label", "Rows", "Share", "In an epoch", "Share then", "Weight"]
    assert training["rows"][1] == ["pos", 12, "16.7%", 27, "31.0%", pytest.approx(weights["pos"])]
    assert run("evaluate", "--run", tmp_path / "runs/tiny", "task.class_weights=none") == 2
    assert "changes training, and nothing of a score" in capsys.readouterr().err
    assert run("evaluate", "--run", tmp_path / "runs/tiny", "task.calibration=none") == 2
    assert "the head of a finished run decides that" in capsys.readouterr().err
    assert run("evaluate", "--run", tmp_path / "runs/tiny") == 0
    found, expected = json.loads(capsys.readouterr().out), summary["scores"]["validation"]
    assert found == pytest.approx(expected)
    assert run("evaluate", "--run", tmp_path / "runs/tiny", "--split", "train") == 0  # reads the threshold, too
    capsys.readouterr()
    assert run("evaluate", "--run", tmp_path / "runs/tiny", "task.threshold=1e-6") == 0
    assert json.loads(capsys.readouterr().out)["recall"] == 1.0  # all are predicted to be "pos"


@pytest.mark.slow
def test_a_class_that_accuracy_hides_is_told(tmp_path, capsys):
    path = skewed_config(tmp_path, optimizer={"learning_rate": 1e-5}, train={"epochs": 1}, data={"test": None})
    assert run("finetune", "--config", path, "task.threshold=0.999") == 0
    said = "validation: train.metric=accuracy hides classes of which not one is recognised (recall 0): pos ("
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "runs/tiny/report.html").read_text()
    assert json.loads((tmp_path / "runs/tiny/summary.json").read_text())["remarks"][0].startswith(said)


@pytest.mark.slow
def test_a_tagging_run_with_every_correction(tmp_path):
    task = {"class_weights": {"LOC": 4, "O": 0.5}, "loss": "focal", "logit_adjustment": 0.5, "decode": "viterbi"}
    path = write_tagging(tmp_path, task=task, train={"batch_size": 16, "epochs": 1})
    assert run("finetune", "--config", path) == 0
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert summary["class_weights"] == {"O": 0.5, "B-LOC": 4.0, "I-LOC": 4.0, "B-PER": 1.0, "I-PER": 1.0}
