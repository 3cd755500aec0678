"""Labels of which only a share of the training rows is kept."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import ColumnRoles, open_tables
from jaxlm.errors import UserError

ROWS = [
    {"text": f"{label} {i}", "label": label} for label, count in (("a", 40), ("b", 21), ("3", 2)) for i in range(count)
]


def kept(shares: dict[str, float], rows: list[dict[str, str]] = ROWS) -> list[dict[str, str]]:
    data = DataConfig.model_validate({"train": {"rows": rows}, "test": {"rows": rows}, "keep_labels": shares})
    tables = open_tables(data, ("train", "test"), ColumnRoles(("text",), ("label",))).tables
    assert len(tables["test"].rows) == len(rows)
    return list(tables["train"].rows)


def test_a_share_of_a_label_stays_whatever_the_order_of_the_rows():
    few, some = kept({"b": 0.1, "3": 0.1}), kept({"b": 0.5, "a": 1.0})
    assert Counter(row["label"] for row in few) == {"a": 40, "b": 2, "3": 1}
    assert Counter(row["label"] for row in some) == {"a": 40, "b": 10, "3": 2}
    assert few == [row for row in ROWS if row in few]  # in their order
    assert [row for row in few if row["label"] == "b"] == [row for row in some if row in few and row["label"] == "b"]
    shuffled = random.Random(0).sample(ROWS, len(ROWS))
    assert sorted(row["text"] for row in kept({"b": 0.1, "3": 0.1}, shuffled)) == sorted(row["text"] for row in few)
    assert kept({}) == ROWS


def test_what_is_refused():
    with pytest.raises(UserError, match=r"data\.keep_labels: .* has no row with the label 'c'"):
        kept({"c": 0.5})
    with pytest.raises(ValueError, match="greater than 0"):
        kept({"b": 0.0})
    data = DataConfig.model_validate({"train": {"rows": ROWS}, "keep_labels": {"a": 0.5}})
    with pytest.raises(UserError, match="no one label to a row"):
        open_tables(data, ("train",), ColumnRoles(("text",)))


def test_rows_of_several_labels_are_not_thinned():
    with pytest.raises(UserError, match="rows of several labels have no one label"):
        kept({"a": 0.5}, [{"text": "x", "label": ["a"]}])
