"""The model card of an export: what it says, and that a card of somebody else is left alone."""

from __future__ import annotations

import json

import pytest
import yaml
from helpers.finetuning_runs import run, write_config

from jaxlm.config.schema import Config
from jaxlm.training.model_card import Base, base_of, make_card, write_card

SUMMARY = {
    "name": "films",
    "command": "jaxlm finetune --config films.yaml",
    "problem": "binary",
    "label_names": ["neg", "p|os"],
    "positive_label": "p|os",
    "label_counts": {"neg": 1200, "p|os": 34},
    "metric": "f1",
    "best_step": 20,
    "steps": 40,
    "metrics": [{"name": "f1", "headline": True}, {"name": "recall_macro", "headline": False}],
    "scores": {"validation": {"f1": 0.75, "recall_macro": 0.5}, "test": {"f1": float("nan")}},
    "data": {"train": {"rows": 1234, "truncated": 3}, "validation": {"rows": 4}},
    "task": {"kind": "classification", "text": ["review"], "label": "label"},
    "model": {"family": "bert", "parameters": 22713986},
    "remarks": ["validation: one label is never predicted"],
    "environment": {"jax": "0.10.2", "devices": "1 x cpu"},
}


def config(**model):
    data = {"train": {"path": "data/train.csv"}, "validation": {"path": "data/v.csv"}, "max_length": 48}
    return Config.model_validate({"name": "films", "model": model or {"init": "org/base"}, "data": data})


def front_matter(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_a_card_says_what_a_run_was():
    card = make_card(SUMMARY, config(), Base("org/base", {"license": "mit", "language": ["en"]}))
    facts = front_matter(card)
    assert facts["license"] == "mit" and facts["language"] == ["en"] and facts["base_model"] == "org/base"
    assert facts["library_name"] == "transformers" and facts["pipeline_tag"] == "text-classification"
    assert facts["metrics"] == ["f1"] and facts["tags"] == ["jaxlm"]
    [result] = facts["model-index"][0]["results"]
    assert result["dataset"]["name"] == "data/v.csv" and result["metrics"][0]["value"] == 0.75
    for part in (
        "Binary: a bert model of 22.7 M parameters, fine-tuned from [org/base](https://huggingface.co/org/base)",
        "License of the base: mit.",
        "| F1 | 0.7500 | – |",
        "The checkpoint of step 20, the best by F1",
        "jaxlm finetune --config films.yaml",
        "| train | `data/train.csv` | truncated 3 | 1,234 |",
        "| 1 | `p\\|os` | 34 |",
        "precision, recall and F1 are of, is `p|os`.",
        "at most 48 tokens of a text",
        "- validation: one label is never predicted",
    ):
        assert part in card


def test_a_card_owns_up_to_what_is_not_known():
    card = make_card({**SUMMARY, "scores": {}}, config(family="bert", preset="base"), Base(None, {}))
    assert "trained from random parameters" in card and "License" not in card and "It was not scored" in card
    assert not {"license", "base_model", "model-index"} & set(front_matter(card))
    unknown = make_card(SUMMARY, config(init="models/minilm"), Base(None, {}))
    assert "started from `minilm`" in unknown and "License of the base: unknown: say it here" in unknown


def test_the_base_is_known_by_its_card(tmp_path):
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\nextra: 1\n---\n# Base\n")
    (folder / "config.json").write_text(json.dumps({"_name_or_path": "org/older"}))
    assert base_of("org/base", folder) == Base("org/base", {"license": "apache-2.0", "language": "en"})
    assert base_of(str(folder), folder).name == "org/older"
    card = make_card(SUMMARY, config(), base_of("org/base", folder))
    (folder / "README.md").write_text(card)  # now it is the export of a run, which names its own base
    assert base_of(str(folder), folder) == Base("org/base", {"license": "apache-2.0", "language": "en"})
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert base_of(str(folder), folder).facts == {}
    assert base_of(None, None) == Base(None, {})


@pytest.mark.parametrize("change", [lambda card: "# Mine\n", lambda card: card.replace("Limits", "Known limits")])
def test_a_card_of_somebody_else_stays(change, tmp_path):
    path = tmp_path / "README.md"
    card = make_card(SUMMARY, config(), Base(None, {}))
    assert write_card(path, card) and write_card(path, card)  # its own, it may write again
    theirs = change(card)
    path.write_text(theirs, encoding="utf-8")
    assert not write_card(path, card) and path.read_text(encoding="utf-8") == theirs


def test_an_export_carries_its_card(tmp_path):
    model = tmp_path / "runs" / "tiny" / "model"
    assert run("finetune", "--config", write_config(tmp_path, train={"epochs": 1})) == 0
    card = (model / "README.md").read_text(encoding="utf-8")
    assert front_matter(card)["model-index"][0]["results"] and "# tiny" in card and "`pos`" in card
    assert run("convert", "export", tmp_path / "runs" / "tiny", tmp_path / "out") == 0
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == card
