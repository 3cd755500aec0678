"""A run whose validation and test rows are split off its training file, through the command line."""

from __future__ import annotations

import json

import pytest
from helpers.finetuning_runs import read_jsonl, rows, run, write_config, write_jsonl


@pytest.mark.slow
def test_a_run_is_scored_on_the_rows_it_held_out_and_so_it_is_later(tmp_path, capsys):
    write_jsonl(tmp_path / "train.jsonl", rows(60))
    path = write_config(
        tmp_path,
        data={"validation": {"fraction": 0.2}, "test": {"fraction": 0.1, "seed": 1}},
        train={"epochs": 1},
    )
    assert run("finetune", "--config", path) == 0
    [said] = [line for line in capsys.readouterr().err.splitlines() if "data.validation: " in line]
    made = tmp_path / "runs/tiny"
    held = {name: read_jsonl(made / f"predictions/{name}.jsonl") for name in ("validation", "test")}
    assert f"data.validation: {len(held['validation'])} of the 60 rows" in said and "neg " in said and "pos " in said
    ids = {name: {row["id"] for row in found} for name, found in held.items()}
    assert not ids["validation"] & ids["test"] and 9 <= len(ids["validation"]) <= 15 and 4 <= len(ids["test"]) <= 8
    scores = json.loads((made / "summary.json").read_text())["scores"]
    assert run("evaluate", "--run", made, "--split", "validation") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(scores["validation"], abs=1e-5)
    assert run("finetune", "--config", path, "data.validation.seed=5") == 2
    assert "data.validation.seed: 0 then, 5 now" in capsys.readouterr().err
    assert run("finetune", "--config", path, "train.epochs=4") == 2
    assert "is finished (train.epochs: 1.0 then, 4.0 now)" in (said := capsys.readouterr().err)
    assert f"model.init={made}" in said and "train.restart=true" in said
    assert run("finetune", "--config", path, "train.steps=4") == 2
    assert "train.epochs=null" in capsys.readouterr().err


def test_folds_and_corpora_refuse_it_in_words(tmp_path, capsys):
    path = write_config(tmp_path, data={"validation": {"fraction": 0.2}})
    assert run("finetune", "--config", path, "train.folds=3") == 2
    assert "the rows that a fold holds out are its validation rows; set data.validation=null" in capsys.readouterr().err
    task = ["task={kind: causal_lm}", "model.family=gpt2", "data.test=null"]
    assert run("pretrain", "--config", path, *task) == 2
    assert "data.validation.fraction: only of labelled rows" in capsys.readouterr().err
