"""Labels as people write them: the problem they pose, their names, and what is refused."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pytest

from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks.label_cells import infer_problem
from jaxlm.tasks.labels import LabelEncoder, LabelSet, labels_of_checkpoint, labels_of_rows

NAN = float("nan")


def table(values: list[Any]) -> Table:
    rows = tuple({"text": "a", "label": value} for value in values)
    return Table("t.csv", ("text", "label"), rows, tuple(range(2, len(rows) + 2)))


def settle(values: list[Any], **changes: Any) -> LabelSet:
    settings = {"problem": "auto", "names": None, "separator": None, "known": None, **changes}
    return labels_of_rows(table(values), "label", **settings)


def encode(labels: LabelSet, value: Any, separator: str | None = None) -> Any:
    return LabelEncoder(labels, "label", separator).encode(table([value]), 0).tolist()


def refused(labels: LabelSet, value: Any, separator: str | None = None) -> str:
    with pytest.raises(UserError, match=r"t\.csv, row 1 \(line 2\): label=") as caught:
        encode(labels, value, separator)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ([1.0, 0.0, 1.0], "binary"),
        (["1.0", "0.0", "2.0"], "multiclass"),
        ([Decimal("1"), Decimal("2")], "binary"),
        ([1.0, 0.0, NAN, None], "binary"),
        ([True, False], "binary"),
        (["0.5", "1.25", "3"], "regression"),
        ([0.5, 2.0, 1.5, None, "nan"], "regression"),
        ([*["0", "1"] * 20, "1.2"], "multiclass"),
        (["ham", "spam", "1.2"], "multiclass"),
        (["ham", "spam", "nan"], "multiclass"),
        (["4", "5", "nan"], "binary"),
        (["1e-1", "2.5e0"], "regression"),
        (["v1.2", "v1.3"], "binary"),
        ([["a"], []], "multilabel"),
        (["\u00b2", "\u2460"], "binary"),
        (["\uff11", "\uff12"], "binary"),
        ([[1, 0], [0, 1], [1, 0, 2], "x"], "multilabel"),
        (["ham", "spam", ["ham"]], "binary"),
        ([*[0.5, 1.25] * 10, "x"], "regression"),
        ([2.5, "x"], "binary"),
        ([0.5, "inf", 1.5], "regression"),
        ([0.5, float("inf"), 10**400, "1e999", 3], "regression"),
        ([Decimal("3.00"), Decimal("1.25")], "regression"),
        (["0", "1", "1.2"], "multiclass"),
    ],
)
def test_the_problem_that_labels_pose(values, problem):
    assert infer_problem(values, None)[0] == problem


def test_whole_numbers_have_one_spelling():
    for values in ([1.0, 0.0], ["1.", "0."], ["1.0", "0"], [Decimal("1"), Decimal("0.0")], [True, False]):
        labels = settle(values)
        assert labels.names == ("0", "1")
        assert [encode(labels, value) for value in (1, 1.0, "1", "1.0", "0")] == [1, 1, 1, 1, 0]
    assert settle(["--1", "+1", "--1"]).names == ("+1", "--1")


def test_names_may_say_more_labels_than_the_rows_have():
    for known in ({"names": ("a", "b", "c")}, {"known": ("a", "b", "c")}):
        assert settle(["a", "b"], **known).problem == "multiclass"
    with pytest.raises(UserError, match="task.problem=binary: expected two labels, found 3"):
        settle(["a", "b"], names=("a", "b", "c"), problem="binary")


def test_a_missing_label_is_no_class():
    labels = settle(["None", "x", None, "", NAN, "  "])
    assert labels.names == ("None", "x") and encode(labels, "None") == 0
    for value in (None, "", "  ", NAN):
        assert "expected a label, found none" in refused(labels, value)
    assert "is not one of the 2 labels" in refused(settle(["4", "5", "nan"]), "nan")


def test_what_is_no_label_is_refused():
    words = settle(["a", "b"])
    for value in ({"a": 1}, ["a"], "\u00b2", "--1", "0", "1" * 5000):
        assert len(refused(words, value)) < 300
    assert "is not one of the 2 labels" in refused(words, "0")  # no ids are meant: the names are those of the rows
    assert encode(settle(["a", "b"], names=("a", "b")), "1") == 1
    target = LabelSet("regression", ("label",))
    for value in ("1e39", 1e39, "nan", "inf", None, "x", True, 10**400, "1_0"):
        assert "finite number" in refused(target, value)
    numbers = settle(["0", "1", "\u00b2", "--1", "\uff11"])
    assert numbers.names == ("0", "1") and all(map(partial(refused, numbers), ("\u00b2", "--1", "\uff11")))
    for values, problem in (
        ([{"a": 1}] * 2, "found an object"),
        ([date(2020, 1, d) for d in (1, 2)], "found a date"),
        ([["p", "p"]] * 2, "stands twice"),
        ([None], "found none"),
    ):
        with pytest.raises(UserError, match=rf"t\.csv, row 1 .*{problem}"):
            settle(values)
    assert encode(target, "1e38") == np.float32(1e38) and encode(target, Decimal("1.5")) == 1.5


def test_lists_of_labels():
    labels = settle([["p", "q"], ["r"]])
    assert labels.names == ("p", "q", "r") and encode(labels, []) == [0, 0, 0]
    assert encode(labels, ["r", "p"]) == [1, 0, 1]
    for value, problem in (
        (["p", "p"], "stands twice"), (["p", 1], "found a number in it"), (["p", None], "found null"), ([""], "empty"),
        (None, "found none"), ([["p"]], "found a list"), ([1, 0], "expected 3 numbers"), ({"p": 1}, "an object"),
    ):  # fmt: skip
        assert problem in refused(labels, value)
    assert encode(settle([[True, False], [False, True]]), [1.0, 0.0]) == [1, 0]
    hot = settle([[1, 0, 1], [0, 0, 1], [1, 0], [0, 0, 2], ["0"]] + [[1, 0, 0]] * 3)
    assert hot.names == ("0", "1", "2") and dict(hot.counts) == {"0": 4, "1": 0, "2": 2}
    assert "expected 3 numbers" in refused(hot, [1, 0]) and "found a number" in refused(hot, [0, 0, 2])
    column = [["p", "q"], ["r"], "p, q", "p", ["p"]]  # a string among lists is neither a list of one nor several names
    labels = settle(column)
    assert labels.names == ("p", "q", "r") and dict(labels.counts) == {"p": 2, "q": 1, "r": 1}
    encoder, rows = LabelEncoder(labels, "label", None), table(column)
    assert encoder.encode(rows, 4).tolist() == [1, 0, 0]
    for row in (2, 3):
        with pytest.raises(UserError, match=rf"row {row + 1} .*expected a list of labels, .*, found a string"):
            encoder.encode(rows, row)
    assert settle(["p", "q", "p"], problem="multilabel").names == ("p", "q")
    split = settle(["x,y", "z", "x,"], separator=",")
    assert split.names == ("x", "y", "z") and encode(split, "", ",") == [0, 0, 0]
    assert "empty one between separators" in refused(split, "x,,y", ",")


def test_labels_of_a_checkpoint():
    known = ("NEG", "POS")
    spelled = settle(["neg", "Pos ", "pos"], known=known)
    assert spelled.names == known and dict(spelled.counts) == {"NEG": 1, "POS": 2}
    assert [encode(spelled, value) for value in ("neg", "Pos ", "POS", "1")] == [0, 1, 1, 1]
    by_id = settle(["0", "1", "1"], known=known)
    assert by_id.names == known and dict(by_id.counts) == {"NEG": 1, "POS": 2}
    assert settle(["good", "bad"], known=known).names == ("bad", "good")
    applied = labels_of_checkpoint({"id2label": {"0": "a", "1": "b"}, "label_ids": False}, "auto")
    assert "is not one of" in refused(applied, "1")
    assert encode(labels_of_checkpoint({"id2label": {"0": "a", "1": "b"}}, "auto"), "1") == 1


def test_what_is_said_of_labels(caplog):
    settle(["Spam", "spam", "spam", "ham ", "ham"])
    assert "'Spam' (1 rows), 'spam' (2 rows); merge them with data.clean.labels: {'Spam': 'spam'}" in caplog.text
    assert "'ham ' (1 rows)" in caplog.text
    caplog.clear()
    settle(["1", "+1", "-1"])
    assert "'1': '+1'" in caplog.text or "'+1': '1'" in caplog.text
    caplog.clear()
    settle(["good", "bad"], known=("NEG", "POS"))
    assert "NEG -> bad, POS -> good" in caplog.text
    assert settle(["a", "b", "b"]).describe() == (
        "binary (2 different labels); labels in order, from the training rows: a 1, b 2; positive: b"
    )
    with pytest.raises(UserError, match=r"task\.labels: 'a' stands twice"):
        settle(["a"], names=("a", "a"))
