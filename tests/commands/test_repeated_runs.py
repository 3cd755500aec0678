"""Cross-validation through the command line: runs in one directory, out-of-fold predictions, a summary over all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.finetuning_runs import read_jsonl, rows, run, write_config, write_jsonl

FOLDS = 2
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folded(tmp_path_factory) -> Path:
    """Folder of a finished cross-validation, `runs/tiny`."""
    folder = tmp_path_factory.mktemp("folded")
    data = rows(48)
    write_jsonl(folder / "train.jsonl", data)
    path = write_config(
        folder,
        data={"validation": None, "test": None},
        task={"calibration": "temperature"},
        train={"batch_size": 16, "epochs": 6, "folds": FOLDS},
        optimizer={"learning_rate": 2e-2},
    )
    assert run("finetune", "--config", path) == 0
    return folder


def test_each_training_row_is_predicted_by_a_run_that_had_not_seen_it(folded):
    made = folded / "runs/tiny"
    given, predicted = read_jsonl(folded / "train.jsonl"), read_jsonl(made / "predictions/out_of_fold.jsonl")
    assert [{k: v for k, v in row.items() if k not in ("prediction", "fold")} for row in predicted] == given
    for fold in range(FOLDS):
        own = read_jsonl(made / f"fold-{fold}/predictions/validation.jsonl")
        assert own == [{k: v for k, v in row.items() if k != "fold"} for row in predicted if row["fold"] == fold]
    summary = json.loads((made / "summary.json").read_text())
    assert summary["repeats"] == "folds" and len(summary["runs"]) == FOLDS
    right = sum(row["prediction"]["label"] == row["label"] for row in predicted) / len(given)
    assert summary["scores"]["validation"]["accuracy"] == pytest.approx(right)  # folds of equal size
    assert "Mean of 2 folds" in (made / "report.html").read_text()


def test_the_same_command_runs_nothing_again(folded, capsys):
    models = [folded / f"runs/tiny/fold-{fold}/model/model.safetensors" for fold in range(FOLDS)]
    before = [path.stat().st_mtime_ns for path in models]
    assert run("finetune", "--config", folded / "config.yaml") == 0
    captured = capsys.readouterr()
    assert captured.err.count("is finished") == FOLDS and "mean ± sd" in captured.out
    assert [path.stat().st_mtime_ns for path in models] == before


def test_a_fold_is_evaluated_on_the_rows_that_it_held_out(folded, capsys):
    made = folded / "runs/tiny"
    assert run("evaluate", "--run", made / "fold-1") == 0
    scores = json.loads(capsys.readouterr().out)
    runs = json.loads((made / "summary.json").read_text())["runs"]
    assert scores == pytest.approx(runs[1]["scores"]["validation"], abs=1e-5)  # calibrated, too
    kept = json.loads((made / "fold-1/model/config.json").read_text())
    assert kept["calibration_temperature"] != 1


def test_the_directory_of_several_runs_is_no_model(folded, capsys):
    made = folded / "runs/tiny"
    for command in (("evaluate",), ("predict", "--input", folded / "train.jsonl", "--output", "-")):
        assert run(*command, "--run", made) == 2
        error = capsys.readouterr().err
        assert "it holds several runs; expected one of them, the best is" in error and "tiny/fold-" in error
    assert run("convert", "inspect", made) == 2
    assert "holds several runs; expected one of them, such as" in capsys.readouterr().err
