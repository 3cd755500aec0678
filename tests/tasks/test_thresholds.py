"""`task.threshold`: what it means for each problem, what validation settles, what is stored, what is refused."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer
from helpers.packed_examples import dataset_of

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Answer, Context

LABELS = {
    "binary": ["ham", "spam", "ham"],
    "multiclass": ["law", "sport", "tax"],
    "multilabel": [["law"], ["law", "tax"], ["sport"]],
    "regression": [0.5, 1.5, 2.25],
}

DATASET = dataset_of([])  # scores ask nothing of it


def task(problem: str, threshold: Any, metric: str | None = None, splits=("train", "validation")) -> Classification:
    rows = tuple({"text": "a", "label": label} for label in LABELS[problem])
    table = Table("t.jsonl", ("text", "label"), rows, (1, 2, 3))
    sources = TableSources(dict.fromkeys(splits, table), {}, ("text",))
    context = Context(DataConfig(), byte_tokenizer(), metric=metric)
    return Classification.create(ClassificationConfig(threshold=threshold), context, sources)


def read_back(made: Classification, config: ClassificationConfig) -> Classification:
    """The task of the exported model."""
    return Classification.create(config, Context(DataConfig(), byte_tokenizer(), made.hf_config()), None)


def said(made: Classification, *probabilities: float) -> Any:
    p = np.asarray(probabilities)
    logits = np.log(p / (1 - p)) if made.problem == "multilabel" else np.log(p)
    found = made.prediction({}, logits.astype(np.float32))
    return found["labels"] if made.problem == "multilabel" else found["label"]


def test_a_number_means_what_the_problem_makes_of_it():
    assert said(task("binary", 0.5), 0.6, 0.4) == "ham"
    assert said(task("binary", 0.3), 0.6, 0.4) == "spam" and said(task("binary", 0.3), 0.8, 0.2) == "ham"
    assert said(task("binary", {"ham": 0.7}), 0.6, 0.4) == "spam"
    assert said(task("multiclass", {"tax": 0.2}), 0.5, 0.2, 0.3) == "tax"
    assert said(task("multiclass", {"law": 0.6}), 0.5, 0.2, 0.3) == "tax"  # the likeliest of the others
    assert said(task("multilabel", 0.3), 0.4, 0.2, 0.6) == ["law", "tax"]
    assert said(task("multilabel", {"sport": 0.1, "tax": 0.7}), 0.6, 0.2, 0.6) == ["law", "sport"]


def test_validation_settles_thresholds_and_the_export_keeps_them(caplog):
    made = task("binary", "tuned", "f1")
    spam = [0.1, 0.2, 0.3, 0.35, 0.05, 0.15]
    gold = [0, 1, 1, 1, 0, 0]
    answers = [
        Answer({}, np.asarray(g, np.int32), np.log([1 - p, p]).astype(np.float32))
        for g, p in zip(gold, spam, strict=True)
    ]
    assert made.scores({}, answers, DATASET)["recall"] == 0
    [remark] = made.remarks("accuracy", answers)
    assert "train.metric=accuracy hides classes of which not one is recognised (recall 0): spam (3);" in remark
    assert made.remarks("f1", answers) == []
    with caplog.at_level(logging.INFO, "jaxlm"):
        tuned = made.tune(answers)
    assert "task.threshold: spam 0.1750 (validation f1 1.0000; untuned 0.0000)" in caplog.text
    assert tuned.scores({}, answers, DATASET)["f1"] == 1.0 and tuned.remarks("accuracy", answers) == []
    assert tuned.hf_config()["decision_thresholds"] == {"spam": pytest.approx(0.175)}
    for config in (tuned.config, ClassificationConfig.of_checkpoint(), ClassificationConfig.of_texts(["a", "b"])):
        assert said(read_back(tuned, config), 0.8, 0.2) == "spam"
    assert said(read_back(tuned, ClassificationConfig(threshold=0.5)), 0.8, 0.2) == "ham"
    assert "decision_thresholds" not in made.hf_config() | task("binary", 0.5).hf_config()
    assert made.tune([]) is made and task("binary", 0.3).tune(answers).thresholds.values == {1: 0.3}


def test_several_labels_have_a_threshold_each():
    made = task("multilabel", {"law": "tuned", "sport": "tuned", "tax": 0.9}, "f1_macro")
    gold = np.asarray([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]])
    p = np.asarray([[0.3, 0.1, 0.95], [0.1, 0.8, 0.1], [0.4, 0.7, 0.1], [0.2, 0.1, 0.5]])
    answers = [Answer({}, g, np.log(q / (1 - q)).astype(np.float32)) for g, q in zip(gold, p, strict=True)]
    tuned = made.tune(answers)
    stored = tuned.hf_config()["decision_thresholds"]
    assert stored == {"law": pytest.approx(0.25), "sport": pytest.approx(0.75), "tax": 0.9}
    assert said(read_back(tuned, ClassificationConfig.of_checkpoint()), 0.26, 0.7, 0.89) == ["law"]


@pytest.mark.parametrize(
    ("problem", "threshold", "settings", "message"),
    [
        ("regression", 0.4, {}, "a regression predicts no labels"),
        ("regression", "tuned", {}, "a regression predicts no labels"),
        ("multiclass", 0.4, {}, r"of 3 labels, expected the one .* \{tax: 0.4\}"),
        ("multiclass", "tuned", {}, r"of 3 labels, expected the one .* \{tax: tuned\}"),
        ("multiclass", {"law": 0.2, "tax": 0.3}, {}, "expected one label, .* found law, tax"),
        ("binary", {}, {}, "expected one label, .* found none"),
        ("binary", {"spom": 0.3}, {}, "'spom' is not one of the labels .*did you mean 'spam'"),
        ("binary", "tuned", {"splits": ("train",)}, "expected data.validation to tune it on"),
        ("binary", "tuned", {"metric": "recall"}, "by train.metric=recall the best threshold predicts everything"),
    ],
)
def test_what_has_no_meaning_is_refused(problem, threshold, settings, message):
    with pytest.raises(UserError, match=f"task.threshold: .*{message}"):
        task(problem, threshold, **settings)


def test_a_damaged_export_is_told():
    config = {"id2label": {"0": "a", "1": "b"}, "decision_thresholds": {"c": 0.3}}
    with pytest.raises(
        UserError, match="config.json: decision_thresholds: expected labels and numbers, found 'c': 0.3"
    ):
        Classification.create(
            ClassificationConfig.of_checkpoint(), Context(DataConfig(), byte_tokenizer(), config), None
        )
