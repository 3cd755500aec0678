"""Numbers and names for people, and the scores that a command prints."""

from __future__ import annotations

import math

import pytest

from jaxlm.report.format import format_cell, format_duration, format_name, format_number, score_lines


@pytest.mark.parametrize(
    ("value", "number", "cell"),
    [
        (None, "–", "–"),
        (math.nan, "–", "–"),
        (1234567, "1,234,567", "1,234,567"),
        (0.123456, "0.1235", "0.123"),
        (2.0, "2", "2.000"),
        (12345.6, "12,346", "12,345.600"),
        (True, "True", "True"),
        ("text", "text", "text"),
    ],
)
def test_numbers(value, number, cell):
    assert (format_number(value), format_cell(value)) == (number, cell)


def test_names_and_durations():
    assert [format_name(n) for n in ("tokens_per_s", "f1_macro", "masked_lm", "roc_auc", "ndcg_at_10", "mrr")] == [
        "tokens/s", "F1 macro", "masked language model", "ROC AUC", "nDCG@10", "MRR",
    ]  # fmt: skip
    assert [format_duration(s) for s in (12.34, 161.2, 11220)] == ["12.3 s", "2 min 41 s", "3 h 07 min"]


def test_score_lines_show_the_headlines_of_splits_and_baselines():
    scores = {"accuracy": 0.81251, "loss": 0.4, "f1_micro": 0.8, "f1/neg": 0.11}
    summary = {
        "name": "tiny",
        "scores": {"test": scores},
        "baselines": {"majority": {"accuracy": 0.5}, "from scratch": {"test": {"accuracy": 0.7}}},
        "metrics": [
            {"name": "loss", "higher_is_better": False, "headline": True},
            {"name": "accuracy", "higher_is_better": True, "headline": True},
            {"name": "f1_micro", "higher_is_better": True, "headline": False},
        ],
    }
    assert [" ".join(line.split()) for line in score_lines(summary).splitlines()] == [
        "test (tiny) loss 0.4000 accuracy 0.8125",
        "baseline majority accuracy 0.5000",
        "baseline from scratch, test accuracy 0.7000",
    ]
    del summary["metrics"]
    first = score_lines(summary).splitlines()[0]
    assert " ".join(first.split()) == "test (tiny) accuracy 0.8125 loss 0.4000 f1_micro 0.8000"
    assert "no validation or test split" in score_lines({"name": "tiny", "scores": {}, "baselines": {}})
