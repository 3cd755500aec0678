"""Scores by group: each is the score of the group's rows alone; intervals and gaps from the bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.inference.evaluator import Evaluation
from jaxlm.inference.slices import Slicing, slice_lines, slice_scores, slice_sections
from jaxlm.report.report import write_page
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Answer, Context

TASK = Classification.create(
    ClassificationConfig(),
    Context(DataConfig(), byte_tokenizer(), hf_config={"id2label": {"0": "ham", "1": "spam"}}),
    None,
)


def answered(groups: dict[Any, tuple[int, int]]) -> tuple[RowDataset, Evaluation]:
    """A split with, by source, so many rows and so many that are answered rightly."""
    answers = []
    for source, (count, right) in groups.items():
        for i in range(count):
            label = i % 2
            said = label if i < right else 1 - label
            row = {"text": f"{source} {i}", "label": "ham spam".split()[label], "source": source, "n": len(answers)}
            answers.append(Answer(row, np.asarray(label, np.int32), np.eye(2, dtype=np.float32)[said] * 2))
    rows = tuple(dict(answer.row) for answer in answers)
    table = Table("rows", ("text", "label", "source", "n"), rows, tuple(range(1, len(rows) + 1)))
    dataset = TASK.dataset(table, labelled=True, key="data.test")
    return dataset, Evaluation(TASK.scores({}, answers, dataset), tuple(answers), {})


class Quick(Classification):
    """Gives the accuracy alone, in no time."""

    def scores(self, sums, answers, dataset):
        right = [answer.kept.argmax() == answer.label for answer in answers]
        return {"accuracy": float(np.mean(right)), "f1/ham": 1.0}


QUICK = Quick(TASK.config, TASK.context, TASK.labels)
DATASET, EVALUATION = answered({"mail": (40, 36), "sms": (20, 10), None: (6, 6)})


def slices(**settings: Any) -> dict[str, Any]:
    return slice_scores(QUICK, DATASET, EVALUATION, Slicing(("source",), **settings))["source"]


def test_a_group_is_scored_by_its_rows_alone():
    groups = slice_scores(TASK, DATASET, EVALUATION, Slicing(("source",), 0))["source"]["groups"]
    assert {name: (group["rows"], group["scores"]["accuracy"]) for name, group in groups.items()} == {
        "mail": (40, 0.9), "sms": (20, 0.5), "(none)": (6, 1.0),
    }  # fmt: skip
    alone, evaluation = answered({"sms": (20, 10)})
    assert groups["sms"]["scores"] == TASK.scores({}, evaluation.answers, alone)
    assert all(group["intervals"] == {} for group in groups.values())


def test_intervals_are_those_of_a_binomial_share():
    found = slices(resamples=2000)
    low, high = found["groups"]["mail"]["intervals"]["accuracy"]
    spread = 1.96 * (0.9 * 0.1 / 40) ** 0.5
    assert (low, high) == pytest.approx((0.9 - spread, 0.9 + spread), abs=0.026)  # a step is 1 / 40
    assert found["groups"]["(none)"]["intervals"]["accuracy"] == [1.0, 1.0]
    assert not any("/" in metric for metric in found["groups"]["mail"]["intervals"])
    gap = found["gaps"]["accuracy"]
    assert (gap["highest"], gap["lowest"], gap["gap"]) == ("(none)", "sms", 0.5)
    assert gap["interval"] == pytest.approx(
        [0.5 - 1.96 * (0.25 / 20) ** 0.5, 0.5 + 1.96 * (0.25 / 20) ** 0.5], abs=0.051
    )


def test_the_bootstrap_is_the_same_each_time_and_differs_by_seed():
    assert slices(resamples=20) == slices(resamples=20)
    assert slices(resamples=20) != slices(resamples=20, seed=1)


def test_a_sum_over_the_whole_split_is_no_groups_score():
    class Summed(Classification):
        def scores(self, sums, answers, dataset):
            return {"accuracy": 1.0, "loss": sums["loss"] / sums["weight"]}

    task = Summed(TASK.config, TASK.context, TASK.labels)
    evaluation = EVALUATION._replace(sums={"loss": 3.0, "weight": 2.0})
    found = slice_scores(task, DATASET, evaluation, Slicing(("source",), 0))
    assert all(set(group["scores"]) == {"accuracy"} for group in found["source"]["groups"].values())


def test_columns_that_make_no_groups_are_refused():
    with pytest.raises(UserError, match="--slice sorce: no such column.*did you mean 'source'"):
        slice_scores(TASK, DATASET, EVALUATION, Slicing(("sorce",)))
    with pytest.raises(UserError, match="--slice n: 66 different values in 66 rows; expected a column of at most 50"):
        slice_scores(TASK, DATASET, EVALUATION, Slicing(("n",)))


def test_tables_and_page(tmp_path):
    found = slice_scores(TASK, DATASET, EVALUATION, Slicing(("source",), 5))
    lines = slice_lines(TASK, found).splitlines()
    assert lines[0] == "By source" and lines[1].split()[:2] == ["source", "Rows"]
    assert [line.split()[0] for line in lines[2:5]] == ["mail", "sms", "(none)"]
    sections = slice_sections(TASK, found)
    assert [section.title for section in sections] == ["By source", "Gaps by source"]
    path = write_page(tmp_path / "slices/test.html", name="x", subtitle="by group", title="Groups", sections=sections)
    page = path.read_text()
    assert "Gaps by source" in page and "(none)" in page and "0.900 [" in page
