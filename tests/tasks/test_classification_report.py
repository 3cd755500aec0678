"""Sections about single predictions, against values worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers.html_pages import page_of

from jaxlm.report.sections import read_analysis, write_analysis
from jaxlm.tasks.calibration import calibration
from jaxlm.tasks.classification_report import PredictedRow, classification_sections


def answer(text: str, gold: int | None, **scores: float) -> PredictedRow:
    likeliest = max(scores, key=lambda name: scores[name])
    label = None if gold is None else np.asarray(gold, np.int32)
    return PredictedRow({"sentence": text, "n": 1}, label, {"label": likeliest, "scores": scores})


def sections_of(problem, names, answers):
    return {section.title: section for section in classification_sections(problem, names, answers, ["sentence"])}


BINARY = [
    answer("fine", 1, neg=0.1, pos=0.9),
    answer("surely wrong", 0, neg=0.05, pos=0.95),
    answer("unlabelled", None, neg=0.05, pos=0.95),
    answer("nearly right", 1, neg=0.6, pos=0.4),
    answer("bad", 0, neg=0.7, pos=0.3),
]


def test_binary_by_hand():
    found = sections_of("binary", ("neg", "pos"), BINARY)
    assert list(found) == [
        "Confusion matrix", "Calibration", "Abstention", "Where to abstain", "Scores by label", "Worst errors",
    ]  # fmt: skip
    matrix = found["Confusion matrix"]
    assert matrix.content["labels"] == ["neg", "pos"] and matrix.content["counts"].tolist() == [[1, 1], [1, 1]]
    assert matrix.note.startswith(
        "4 examples, 2 of them wrong (50.0%); 1 more rows have no gold label and are not counted."
    )
    assert found["Scores by label"].content["rows"] == [["neg", 0.5, 0.5, 0.5, 2, 2], ["pos", 0.5, 0.5, 0.5, 2, 2]]
    errors = found["Worst errors"].content
    assert errors["columns"] == ["Line", "sentence", "Gold", "Predicted", "P(predicted)", "P(gold)"]
    assert errors["rows"] == [
        [2, "surely wrong", "neg", "pos", 0.95, 0.05],
        [4, "nearly right", "pos", "neg", 0.6, 0.4],
    ]
    (series,) = found["Calibration"].content["series"]
    assert series["x"] == pytest.approx([0.6, 0.7, 0.925]) and series["y"] == pytest.approx([0, 1, 0.5])
    # (0.6 + 0.3 + 2 * 0.425) / 4
    assert "Expected calibration error: 0.438." in found["Calibration"].note


def test_the_page_shows_every_section(tmp_path):
    write_analysis(tmp_path / "analysis.json", classification_sections("binary", ("neg", "pos"), BINARY, ["sentence"]))
    (tmp_path / "summary.json").write_text(json.dumps({"name": "a", "status": "finished"}))
    page = page_of(tmp_path)
    assert page.table("gold")[1:] == [["gold", "neg", "pos"], ["neg", "1", "1"], ["pos", "1", "1"]]
    assert page.table("Label")[1] == ["neg", "0.500", "0.500", "0.500", "", "2", "2"]
    assert page.table("Line")[1] == ["2", "surely wrong", "neg", "pos", "0.950", "0.050"]
    assert page.tags.count("circle") == 3 + 4  # calibration, abstention


def test_multiclass_by_hand():
    names = ("a", "b", "c", "never")
    pairs = ["aa", "aa", "ab", "bb", "ca", "ca"]  # gold, predicted
    answers = [answer(g + p, names.index(g), **{n: 0.7 if n == p else 0.1 for n in names}) for g, p in pairs]
    found = sections_of("multiclass", names, answers)
    assert found["Most frequent confusions"].content["rows"] == [["c", "a", 2, "100.0%"], ["a", "b", 1, "33.3%"]]
    assert found["Scores by label"].content["rows"] == [
        ["a", 2 / 4, 2 / 3, 4 / 7, 3, 4],
        ["b", 1 / 2, 1, 2 / 3, 1, 2],
        ["c", 0, 0, 0, 2, 0],
        ["never", None, None, None, 0, 0],
    ]
    counts = [[2, 1, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert found["Confusion matrix"].content["counts"].tolist() == counts


def test_multilabel_by_hand():
    answers = [
        PredictedRow({"sentence": "x"}, np.float32([1, 1]), {"labels": ["a"], "scores": {"a": 0.9, "b": 0.2}}),
        PredictedRow({"sentence": "y"}, np.float32([0, 0]), {"labels": [], "scores": {"a": 0.1, "b": 0.4}}),
        PredictedRow({"sentence": "z"}, np.float32([0, 1]), {"labels": ["a", "b"], "scores": {"a": 0.9, "b": 0.6}}),
    ]
    found = sections_of("multilabel", ("a", "b"), answers)
    assert list(found) == ["Scores by label", "Calibration", "Worst errors"]
    assert found["Scores by label"].note == "3 examples, 2 of them wrong (66.7%)."
    assert found["Scores by label"].content["rows"] == [["a", 1 / 2, 1, 2 / 3, 1, 2], ["b", 1, 1 / 2, 2 / 3, 2, 1]]
    errors = found["Worst errors"].content
    assert errors["columns"] == ["Line", "sentence", "Gold", "Predicted", "Worst label", "Its probability"]
    assert errors["rows"] == [[3, "z", "b", "a, b", "a", 0.9], [1, "x", "a, b", "a", "b", 0.2]]


def test_regression_by_hand():
    answers = [
        PredictedRow({"sentence": f"t{i}"}, np.float32(i), {"score": i + (2.5 if i == 3 else 0.0)}) for i in range(5)
    ]
    found = sections_of("regression", ("label",), answers)
    assert list(found) == ["Predicted against gold", "Worst errors"]
    (series,) = found["Predicted against gold"].content["series"]
    assert (series["x"].tolist(), series["y"].tolist()) == ([0, 1, 2, 3, 4], [0, 1, 2, 5.5, 4])
    assert found["Predicted against gold"].note == "5 examples."
    assert found["Worst errors"].content["rows"] == [[4, "t3", "3", "5.5", "+2.5"]]


def test_nothing_is_said_without_gold_labels_and_no_errors_without_mistakes():
    assert classification_sections("binary", ("neg", "pos"), [BINARY[2]], ["sentence"]) == []
    assert classification_sections("binary", ("neg", "pos"), [], ["sentence"]) == []
    assert "Worst errors" not in sections_of("binary", ("neg", "pos"), [BINARY[0], BINARY[4]])


def test_of_many_labels_the_most_confused_are_shown():
    names = [f"l{i}" for i in range(30)]

    def made(gold, predicted):
        return answer("t", gold, **{n: 0.5 if n == f"l{predicted}" else 0.01 for n in names})

    answers = [made(3, 7), made(3, 7), made(9, 3), *(made(i, i) for i in range(30))]
    found = sections_of("multiclass", names, answers)
    matrix = found["Confusion matrix"]
    assert matrix.content["labels"] == ["l3", "l7", "l9"]
    assert matrix.content["counts"].tolist() == [[1, 2, 0], [0, 1, 0], [1, 0, 1]]
    assert "The 3 of 30 labels that are most often confused." in matrix.note
    rows = found["Scores by label"].content["rows"]
    assert len(rows) == 30 and [row[0] for row in rows[:3]] == ["l3", "l7", "l9"]  # F1 2/5, 2/4, 2/3
    assert sections_of("multiclass", names, answers[3:]).keys() == {
        "Calibration", "Abstention", "Where to abstain", "Scores by label",
    }  # fmt: skip


@pytest.mark.parametrize("problem", ["multiclass", "multilabel", "regression"])
def test_the_analysis_of_a_large_split_is_small(tmp_path, problem):
    rng = np.random.default_rng(0)
    num_labels, count = 400, 3000
    names = [f"label {i} " * 20 for i in range(num_labels)]
    row, scores = {"sentence": "word " * 1000}, dict.fromkeys(names, 0.5)
    gold = rng.integers(0, num_labels, count)
    if problem == "multiclass":
        answers = [PredictedRow(row, g, {"label": names[0], "scores": scores}) for g in gold]
    elif problem == "multilabel":
        answers = [PredictedRow(row, np.ones(num_labels), {"labels": names[:200], "scores": scores}) for _ in gold]
    else:
        answers = [PredictedRow(row, float(g), {"score": 0.0}) for g in gold]
    path = tmp_path / "analysis.json"
    write_analysis(path, classification_sections(problem, names, answers, ["sentence"]))
    assert path.stat().st_size < 100_000
    notes = " ".join(section.note for section in read_analysis(path))
    assert ("500 of them are drawn" if problem == "regression" else "300 of 400 labels") in notes


def test_calibration_by_hand():
    # bin .6-.7: .62 wrong, .66 right; bin .9-1: .95 right, 1.0 right
    confidence, accuracy, error = calibration(np.array([0.62, 0.66, 0.95, 1.0]), np.array([False, True, True, True]))
    assert confidence == pytest.approx([0.64, 0.975])
    assert accuracy == pytest.approx([0.5, 1.0])
    assert error == pytest.approx(0.5 * 0.14 + 0.5 * 0.025)
