"""Tagging by the commands: trained, evaluated, asked, exported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.finetuning_runs import read_jsonl, run, write_jsonl
from helpers.tagging_runs import write_tagging

from jaxlm.config.loading import load_config
from jaxlm.inference.trained import open_trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tagging")
    path = write_tagging(folder, task={"decode": "viterbi", "baselines": True}, train={"epochs": 8},
                         optimizer={"learning_rate": 1e-2})  # fmt: skip
    assert run("finetune", "--config", path) == 0
    return folder


def test_a_tagger_learns_and_reports(finished, capsys):
    made = finished / "runs/tiny"
    summary = json.loads((made / "summary.json").read_text())
    scores = summary["scores"]["test"]
    assert scores["f1"] > 0.9 and scores["accuracy"] > 0.9 and summary["metric"] == "f1"
    assert scores["f1/PER"] > 0.9 and summary["label_names"] == ["O", "B-LOC", "I-LOC", "B-PER", "I-PER"]
    assert summary["baselines"]["most_frequent_tag"]["f1"] == 1
    page = (made / "report.html").read_text()
    assert "Entities by type" in page and "Kinds of mistakes" in page
    assert run("evaluate", "--run", made, "--split", "test") == 0
    again = json.loads(capsys.readouterr().out)
    assert again == pytest.approx(scores, abs=1e-5)
    [first, *_] = read_jsonl(made / "predictions/test.jsonl")
    assert len(first["prediction"]["tags"]) == len(first["tokens"])


def test_tokens_and_texts_are_answered(finished, tmp_path):
    made = finished / "runs/tiny"
    asked = write_jsonl(tmp_path / "in.jsonl", [{"tokens": ["the", "anna", "film"], "n": 1}, {"tokens": None}])
    assert run("predict", "--run", made, "--input", asked, "--output", tmp_path / "out.jsonl") == 0
    tokens, bad = read_jsonl(tmp_path / "out.jsonl")
    assert tokens["n"] == 1 and tokens["prediction"]["tags"] == ["O", "B-PER", "O"]
    assert tokens["prediction"]["entities"] == [
        {"label": "PER", "start": 4, "end": 8, "text": "anna", "token_start": 1, "token_end": 2}
    ]
    assert "expected a list of tokens" in bad["error"]
    asked = write_jsonl(tmp_path / "in.jsonl", [{"text": "the  anna was\tin rome"}])
    assert run("predict", "--run", made / "model", "--input", asked, "--output", tmp_path / "out.jsonl") == 0
    [text] = read_jsonl(tmp_path / "out.jsonl")
    assert [(e["label"], e["start"], e["end"], e["text"]) for e in text["prediction"]["entities"]] == [
        ("PER", 5, 9, "anna"), ("LOC", 17, 21, "rome")
    ]  # fmt: skip


def test_packing_changes_no_score(finished):
    """Each word's scores are those of its sentence alone."""
    made = finished / "runs/tiny"
    kept = {}
    for packing in (True, False):
        config = load_config(made / "config.yaml", [f"data.packing={str(packing).lower()}"])
        trained = open_trained(str(made), config, ("test",))
        dataset = trained.setup.datasets["test"]
        found = trained.evaluator._outputs(trained.params, {}, dataset, {})
        kept[packing] = {index: values["scores"] for index, values in found}
    assert kept[True].keys() == kept[False].keys() and len(kept[True]) == 19
    for index, values in kept[True].items():
        np.testing.assert_allclose(values, kept[False][index], atol=1e-5, rtol=0)
