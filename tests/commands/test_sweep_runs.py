"""A sweep through the command line: real runs, one of which ends early."""

from __future__ import annotations

import json
import sys

import pytest
from helpers.finetuning_runs import read_jsonl, run, write_config

optuna = pytest.importorskip("optuna")


class EndTheSecond(optuna.pruners.BasePruner):
    """Ends the second trial after its first evaluation."""

    def prune(self, study, trial):
        return trial.number == 1


@pytest.mark.slow
def test_trials_are_runs_and_the_best_is_a_config(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(optuna.pruners, "MedianPruner", EndTheSecond)
    path = write_config(tmp_path, data={"test": None}, train={"batch_size": 16, "epochs": 2})
    space = tmp_path / "space.yaml"
    space.write_text("optimizer.learning_rate: {low: 1e-3, high: 1e-2, log: true}\n")
    assert run("sweep", "--config", path, "--space", space, "--trials", 2) == 0
    assert "trial 0" in capsys.readouterr().out
    made = tmp_path / "runs/tiny-sweep"
    summary = json.loads((made / "summary.json").read_text())
    assert [(t["state"], t["evaluations"]) for t in summary["trials"]] == [("finished", 2), ("ended early", 1)]
    own = json.loads((made / "trial-0/summary.json").read_text())
    assert summary["trials"][0]["value"] == own["scores"]["validation"]["accuracy"]
    evaluations = [row for row in read_jsonl(made / "trial-1/metrics.jsonl") if row["kind"] == "evaluation"]
    assert len(evaluations) == 1 and not (made / "trial-1/checkpoints").exists()
    assert run("finetune", "--config", made / "best.yaml", "--dry-run") == 0


def test_what_a_sweep_cannot_do_is_said(tmp_path, capsys, monkeypatch):
    path = write_config(tmp_path)
    space = tmp_path / "space.yaml"
    space.write_text("optimizer.learning_rat: [1e-3, 1e-2]\n")
    assert run("sweep", "--config", path, "--space", space) == 2
    assert "unknown key optimizer.learning_rat" in capsys.readouterr().err
    assert run("sweep", "--config", path, "--space", tmp_path / "none.yaml") == 2
    assert "none.yaml: no such file; did you mean" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert run("sweep", "--config", path, "--space", space) == 2
    assert "pip install 'jaxlm[sweep]'" in capsys.readouterr().err
