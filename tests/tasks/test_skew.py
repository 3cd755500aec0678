"""How classes of unequal size are treated: weights by formula and by name, shares, and what is refused."""

from __future__ import annotations

import logging
import math
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.config.loading import load_config
from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.objectives.skewed import NO_SKEW, Skew
from jaxlm.tasks import TASKS
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Context
from jaxlm.tasks.skew import class_weights, positive_weights
from jaxlm.tasks.tagging import Tagging
from jaxlm.tasks.tagging_config import TaggingConfig

SMS = ["ham"] * 12 + ["spam"] * 3
TOPICS = [["law"], ["law", "tax"], [], ["law"], ["tax", "law"], ["law"]]
TAGS = [["O", "O", "B-PER", "I-PER"], ["O", "O", "O"], ["B-LOC", "O"]]


def table(rows: list[dict[str, Any]]) -> Table:
    return Table("t.jsonl", tuple(rows[0]), tuple(rows), tuple(range(1, len(rows) + 1)))


def sources(labels: list[Any], split: str = "train") -> TableSources:
    return TableSources({split: table([{"text": "a", "label": label} for label in labels])}, {}, ("text",))


def made(
    labels: list[Any], /, *, smoothing: float = 0.0, split: str = "train", sampling: Any = "natural", **settings: Any
) -> Classification:
    context = Context(DataConfig(sampling=sampling), byte_tokenizer(), label_smoothing=smoothing)
    return Classification.create(ClassificationConfig(**settings), context, sources(labels, split))


def classification(labels: list[Any], /, **settings: Any) -> Skew:
    return made(labels, **settings).skew


def tagging(**settings: Any) -> tuple[Skew, tuple[str, ...]]:
    rows = [{"tokens": ["w"] * len(tags), "tags": tags} for tags in TAGS]
    opened = TableSources({"train": table(rows)}, {}, ("tokens",))
    made = Tagging.create(TaggingConfig(**settings), Context(DataConfig(), byte_tokenizer()), opened)
    return made.skew, made.label_names


def test_weights_follow_their_formulas():
    counts = [900, 90, 10]
    raw = {
        "inverse": [1 / n for n in counts],
        "sqrt": [1 / math.sqrt(n) for n in counts],
        "effective": [(1 - 0.99) / (1 - 0.99**n) for n in counts],
    }
    for rule, expected in raw.items():
        scale = 1000 / sum(n * w for n, w in zip(counts, expected, strict=True))
        found = class_weights(np.asarray([*counts, 0]), rule, 0.99)
        assert found.tolist() == pytest.approx([*(w * scale for w in expected), 1.0]), rule
    assert class_weights(np.asarray(counts), "inverse").tolist() == pytest.approx([1000 / (3 * n) for n in counts])
    assert class_weights(np.asarray([10**6, 3]), "effective", 0.999)[0] > 0  # the power underflows
    lacks = {
        "inverse": [(100 - n) / n for n in (20, 80)],
        "sqrt": [math.sqrt((100 - n) / n) for n in (20, 80)],
        "effective": [(1 - 0.99 ** (100 - n)) / (1 - 0.99**n) for n in (20, 80)],
    }
    for rule, expected in lacks.items():
        found = positive_weights(np.asarray([20, 80, 0, 100]), 100, rule, 0.99)
        assert found[:3].tolist() == pytest.approx([*expected, 1.0]) and 0 < found[3] < expected[1]


def test_the_rows_of_a_run_give_weights_and_shares(caplog):
    with caplog.at_level(logging.INFO, "jaxlm"):
        assert classification(SMS, class_weights="inverse").class_weights == pytest.approx((15 / 24, 15 / 6))
    assert "task.class_weights, by class: ham 0.625, spam 2.5" in caplog.text
    adjusted = classification(SMS, logit_adjustment=2.0)
    assert adjusted.offsets == pytest.approx((2 * math.log(12 / 15), 2 * math.log(3 / 15)))
    several = classification(TOPICS, class_weights="inverse", logit_adjustment=1.0)
    assert several.class_weights == pytest.approx((1 / 5, 4 / 2))
    assert several.offsets == pytest.approx((math.log(5 / 1), math.log(2 / 4)))
    assert classification(SMS, loss="focal", focal_gamma=1.5) == Skew(None, 1.5, None)
    assert classification(SMS) == NO_SKEW
    assert classification(SMS, split="test", labels=("ham", "spam"), class_weights="inverse") == NO_SKEW


def test_weights_and_shares_are_those_of_the_rows_as_they_are_sampled(caplog):
    with caplog.at_level(logging.INFO, "jaxlm"):
        balanced = made(SMS, sampling="balanced", class_weights="inverse", logit_adjustment=1.0)
    assert balanced.skew == Skew((1.0, 1.0), None, (math.log(0.5),) * 2)
    assert balanced.describe()["sampled_counts"] == {"ham": 12, "spam": 12}
    assert "data.sampling: rows of an epoch: ham 12, spam 12" in caplog.text
    assert "sampled_counts" not in made(SMS).describe()
    assert made(SMS, sampling="sqrt", class_weights="inverse").skew.class_weights == pytest.approx((18 / 24, 18 / 12))
    table = sources(SMS).tables["train"]
    assert balanced.examples(table, labelled=True, key="data.train").classes.tolist() == [0] * 12 + [1] * 3
    assert balanced.examples(table, labelled=False, key="--input").classes is None


def test_the_words_of_tags_give_weights():
    skew, names = tagging(class_weights="inverse", logit_adjustment=1.0)
    counts = dict(zip(["O", "B-PER", "I-PER", "B-LOC"], [6, 1, 1, 1], strict=True))
    assert skew.class_weights == pytest.approx([9 / (4 * counts[n]) if n in counts else 1.0 for n in names])
    assert skew.offsets == pytest.approx([math.log(counts.get(n, 1) / 9) for n in names])
    skew, names = tagging(class_weights={"PER": 5, "I-PER": 2, "O": 0.1})
    named = {"O": 0.1, "B-PER": 5.0, "I-PER": 2.0}
    assert skew.class_weights == tuple(named.get(name, 1.0) for name in names)


@pytest.mark.parametrize(
    ("labels", "settings", "problem"),
    [
        (SMS, {"class_weights": {"spom": 2}}, r"task.class_weights: 'spom' is not one .*did you mean 'spam'"),
        (SMS, {"loss": "focal", "smoothing": 0.1}, r"train.label_smoothing: the focal loss .* leave one of them out"),
        ([0.5, 1.5, 2.25], {"class_weights": "sqrt"}, r"task.class_weights: a regression has no classes"),
        ([0.5, 1.5, 2.25], {"sampling": "under"}, r"data.sampling: rows of a regression problem have no one label"),
        (
            TOPICS,
            {"sampling": "sqrt"},
            r"data.sampling: rows of a multilabel problem .* task.class_weights weighs each",
        ),
        ([0.5, 1.5, 2.25], {"loss": "focal"}, r"task.loss: a regression has no classes"),
        ([0.5, 1.5, 2.25], {"logit_adjustment": 1.0}, r"task.logit_adjustment: a regression has no classes"),
    ],
)
def test_what_does_not_apply_is_refused(labels, settings, problem):
    with pytest.raises(UserError, match=problem):
        classification(labels, **settings)


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("task.focal_gamma=1", "focal_gamma is read with task.loss=focal only"),
        ("task.effective_beta=0.9", "effective_beta is read with task.class_weights=effective only"),
        ("task.class_weights={ham: 0, spam: 1}", "task.class_weights.ham: expected"),
        ("task.class_weights=balanced", "expected one of none, inverse, sqrt, effective or mapping of text to number"),
        ("task={kind: question_answering, class_weights: sqrt}", "unknown key task.class_weights"),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, override, problem):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nmodel: {family: bert, preset: tiny}\ntask: {text: text}\n")
    with pytest.raises(UserError) as error:
        load_config(path, [override])
    assert problem in str(error.value)


def test_sampling_is_refused_where_rows_have_no_class():
    for kind in ("tagging", "question_answering", "multiple_choice", "embedding", "text_to_text", "masked_lm"):
        with pytest.raises(UserError, match=r"data.sampling: .*leave it out"):
            TASKS[kind].check_data_keys(DataConfig(sampling="sqrt"))
    Classification.check_data_keys(DataConfig(sampling="sqrt"))


def test_weights_may_be_named_by_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ntask: {class_weights: {0: 1, 1: 7}}\n")
    assert load_config(path).task.class_weights == {"0": 1.0, "1": 7.0}
