"""Temperature scaling and abstention, against exhaustive searches and sums worked out row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.metrics.classification import classification_metrics
from jaxlm.tasks.calibration import (
    TEMPERATURE,
    abstention_sections,
    choose_temperature,
    expected_calibration_error,
    probabilities,
    risk_coverage,
)
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Answer, Context

RNG = np.random.default_rng(0)


def overconfident(rows: int = 400, classes: int = 3, factor: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `factor` times those whose probabilities are right, and labels drawn by the right ones."""
    logits = RNG.normal(size=(rows, classes)) * 1.5
    labels = np.array([RNG.choice(classes, p=p) for p in probabilities(logits, multilabel=False)])
    return logits * factor, labels


def loss(logits: np.ndarray, labels: np.ndarray, temperature: float, *, multilabel: bool = False) -> float:
    """Cross-entropy, a row at a time."""
    p = probabilities(logits / temperature, multilabel=multilabel)
    if multilabel:
        return -float(np.mean(np.log(np.maximum(np.where(labels > 0, p, 1 - p), 1e-300))))
    return -float(np.mean([np.log(max(row[label], 1e-300)) for row, label in zip(p, labels, strict=True)]))


@pytest.mark.parametrize("multilabel", [False, True])
def test_no_other_temperature_has_a_lower_loss(multilabel):
    logits, labels = overconfident()
    if multilabel:
        labels = (RNG.random(logits.shape) < probabilities(logits / 3, multilabel=True)).astype(np.float32)
    chosen = choose_temperature(logits, labels, multilabel=multilabel)
    assert chosen == pytest.approx(3.0, rel=0.25)  # what the logits were multiplied by
    least = min(loss(logits, labels, t, multilabel=multilabel) for t in np.geomspace(0.05, 20, 2000))
    assert loss(logits, labels, chosen, multilabel=multilabel) <= least + 1e-9


def test_extreme_data_keep_the_temperature_within_bounds():
    right = np.eye(2)[np.array([0, 1, 0])]
    assert choose_temperature(right, np.array([0, 1, 0])) == pytest.approx(0.05, rel=1e-3)
    assert choose_temperature(right, np.array([1, 0, 1])) == pytest.approx(20, rel=1e-3)


def test_risk_by_hand():
    confidence, right = np.array([0.9, 0.6, 0.8, 0.8, 0.5]), np.array([True, False, True, False, False])
    coverage, risk, area = risk_coverage(confidence, right)
    assert coverage == pytest.approx([1 / 5, 3 / 5, 4 / 5, 1]) and risk == pytest.approx([0, 1 / 3, 2 / 4, 3 / 5])
    assert area == pytest.approx((0 + 2 / 3 + 2 / 4 + 3 / 5) / 5)
    chart, table = abstention_sections(confidence, right)
    assert table.content["rows"] == [["100.0%", 0.5, "60.00%"], ["80.0%", 0.6, "50.00%"], ["60.0%", 0.8, "33.33%"],
                                     ["20.0%", 0.9, "0.00%"]]  # fmt: skip
    assert "(AURC): 0.3533" in chart.note


def task(problem: str = "multiclass", hf: dict[str, Any] | None = None, trained: bool = True, **config: Any):
    names = {"multiclass": "abc", "binary": "ab", "multilabel": "abc", "regression": "a"}[problem]
    kinds = {"multilabel": "multi_label_classification", "regression": "regression"}
    settings = {"id2label": {str(i): n for i, n in enumerate(names)}, "problem_type": kinds.get(problem), **(hf or {})}
    context = Context(DataConfig(), byte_tokenizer(), hf_config=settings, trained=trained)
    return Classification.create(ClassificationConfig(**config), context, None)


def answers(logits: np.ndarray, labels: np.ndarray) -> list[Answer]:
    return [Answer({"text": "x"}, label, row.astype(np.float32)) for row, label in zip(logits, labels, strict=True)]


def split(made: Classification) -> RowDataset:
    return made.dataset(Table("rows", ("text",), ({"text": "x"},), (1,)), labelled=False, key="rows")


def test_a_tuned_task_keeps_labels_and_mends_probabilities():
    logits, labels = overconfident()
    plain = task(calibration="temperature")
    rows = answers(logits, labels)
    tuned = plain.tune([*rows, Answer({"text": "unlabelled"}, None, rows[0].kept)])
    before, after = (t.scores({}, rows, split(t)) for t in (plain, tuned))
    assert after["accuracy"] == before["accuracy"]
    assert after["ece"] < before["ece"] / 2 and after["loss"] < before["loss"]
    predicted = tuned.prediction({}, rows[0].kept)
    assert predicted["scores"]["a"] == pytest.approx(
        probabilities(logits[:1] / tuned.temperature, multilabel=False)[0, 0]
    )
    assert predicted["label"] == plain.prediction({}, rows[0].kept)["label"]
    assert "ece" in {metric.name for metric in tuned.metrics} and not tuned.metrics[-1].higher_is_better
    assert "The outputs are divided by" in next(s for s in tuned.report(rows) if s.title == "Calibration").note


def test_without_the_key_nothing_changes():
    logits, labels = overconfident(50)
    plain = task()
    assert plain.tune(answers(logits, labels)) is plain
    assert TEMPERATURE not in plain.hf_config() and TEMPERATURE not in plain.describe()["task"]
    expected = classification_metrics(
        "multiclass", labels, probabilities(logits.astype(np.float32), multilabel=False), "abc"
    )
    found = plain.scores({}, answers(logits, labels), split(plain))
    assert {name: found[name] for name in expected} == expected


def test_the_temperature_goes_through_config_json():
    logits, labels = overconfident()
    tuned = task(calibration="temperature").tune(answers(logits, labels))
    again = task(hf=tuned.hf_config())  # as `predict` opens a bare checkpoint
    assert again.temperature == tuned.temperature != 1
    assert task(hf=tuned.hf_config(), trained=False).temperature == 1  # fine-tuned anew, it is tuned anew
    assert tuned.describe()["task"][TEMPERATURE] == tuned.temperature
    with pytest.raises(UserError, match=f"{TEMPERATURE}: expected a number above 0, found -1"):
        task(hf={TEMPERATURE: -1})


def test_a_regression_has_nothing_to_calibrate():
    with pytest.raises(UserError, match="task.calibration: a regression gives no probabilities"):
        task("regression", calibration="temperature")


def test_several_labels_are_calibrated_together():
    logits, _ = overconfident()
    labels = (RNG.random(logits.shape) < probabilities(logits / 3, multilabel=True)).astype(np.float32)
    tuned = task("multilabel", calibration="temperature").tune(answers(logits, labels))
    assert tuned.temperature == pytest.approx(3, rel=0.25)
    assert "ece" not in tuned.scores({}, answers(logits, labels), split(tuned))
    (section,) = (s for s in tuned.report(answers(logits, labels)) if s.title == "Calibration")
    assert section.content["axes"]["x"] == "probability of a label"


def test_expected_error_of_the_likeliest_label():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.55, 0.45]])
    assert expected_calibration_error(scores, np.array([0, 0, 0])) == pytest.approx((0.1 + 0.8 + 0.45) / 3)
