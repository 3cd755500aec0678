"""`jaxlm.load`: answers in order, the same as the command's; nothing compiled twice; what a model cannot do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.finetuning_runs import read_jsonl, run, write_jsonl

import jaxlm
from jaxlm.api.scoring import _file_or_rows
from jaxlm.api.settings import plain
from jaxlm.errors import UserError

TEXTS = ["good", "a bad fox", "fox", "a good fox was a good fox", "bad"]


def test_answers_are_those_of_the_command_in_order(loaded, classifier, tmp_path):
    write_jsonl(tmp_path / "in.jsonl", [{"text": text} for text in TEXTS])
    assert run("predict", "--run", classifier, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out") == 0
    theirs = [row["prediction"] for row in read_jsonl(tmp_path / "out")]
    ours = loaded.predict(TEXTS)
    assert [answer["label"] for answer in ours] == [answer["label"] for answer in theirs]
    for answer, other in zip(ours, theirs, strict=True):
        assert answer["scores"] == pytest.approx(other["scores"], abs=1e-5)
    assert len({answer["scores"]["pos"] for answer in ours}) == len(TEXTS)
    one = loaded.predict({"text": TEXTS[1]})
    assert one["scores"] == pytest.approx(ours[1]["scores"], abs=1e-5) == loaded.predict(TEXTS[1])["scores"]
    assert loaded.predict(iter(())) == [] and loaded.labels == ("neg", "pos") and loaded.columns == ("text",)
    assert "bert" in repr(loaded) and "labels neg, pos" in repr(loaded)


class Table:
    """As a table of pandas: it yields the names of its columns."""

    columns = ("text", "id")

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self.rows


class Frame(Table):
    """As a table of polars."""

    def to_dicts(self) -> list[dict[str, Any]]:
        return self.rows

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        raise AssertionError(orient)


@pytest.mark.parametrize("table", [Table, Frame])
def test_tables_are_rows_and_not_the_names_of_their_columns(table, loaded):
    rows = [{"text": text, "id": i} for i, text in enumerate(TEXTS)]
    assert loaded.predict(table(rows)) == loaded.predict(rows)
    assert plain({"rows": table(rows)}) == {"rows": rows} and _file_or_rows(table(rows)) == rows


def test_later_calls_compile_nothing(loaded):
    step = loaded.predictor.trained.evaluator._step
    loaded.predict(TEXTS[:1])
    loaded.predict(TEXTS)
    compiled = step._cache_size()
    for some in (TEXTS[1:2], TEXTS[2:], [TEXTS[3]] * 2, ["a" * n for n in (3, 9, 5, 7)]):
        loaded.predict(some)
    assert step._cache_size() == compiled <= 2


def test_rows_that_cannot_be_answered(loaded, classifier):
    for rows, problem in (
        ([{"txt": "good"}], "row 1: no column 'text'; it has: txt"),
        (iter(["good", None]), "row 2: expected a mapping with the columns text; found NoneType"),
        (["good", {"text": None}], "row 2: text is missing"),
        ([("good", "bad")], "row 1: text"),
    ):
        with pytest.raises(UserError, match="the input, ") as raised:
            loaded.predict(rows)
        assert problem in str(raised.value)
    answers = jaxlm.load(classifier, on_bad_row="error").predict(["good", {"text": None}])
    assert answers[0]["label"] in ("neg", "pos") and "row 2: text is missing" in answers[1]["error"]
    with pytest.raises(UserError, match="task classification gives no vectors"):
        loaded.embed(TEXTS)
    with pytest.raises(UserError, match="task classification writes no text"):
        loaded.generate(TEXTS)
    with pytest.raises(UserError, match="override 'train.epochs=1': predictions follow"):
        jaxlm.load(classifier, train={"epochs": 1})


def test_vectors(encoder):
    model = jaxlm.load(encoder)
    vectors = model.embed(["a good fox", "bad", "a good fox"])
    assert vectors.dtype == np.float32 and vectors.ndim == 2
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-3)
    assert len(model.embed([])) == 0
    with pytest.raises(UserError, match="expected a list of texts"):
        model.embed("a good fox")


def test_texts(writer):
    model = jaxlm.load(writer, generation={"max_new_tokens": 4})
    first, second = model.generate(["a good", "fox"])
    assert isinstance(first, str) and model.predict("a good") == {"text": first}
    assert model.generate(["fox"]) == [second]
    with pytest.raises(UserError, match="gives no vectors"):
        model.embed(["fox"])


def test_a_mistyped_path_names_the_nearest(classifier):
    for name in (f"{classifier}x", str(Path(classifier).parent / "classifer0")):
        with pytest.raises(UserError, match=r"^model.*did you mean .*classifier0'") as raised:
            jaxlm.load(name)
        assert "--run" not in str(raised.value)


def test_a_model_without_its_head(classifier, tmp_path):
    copy = Path(shutil.copytree(classifier, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UserError, match="fine-tune it"):
        jaxlm.load(copy)
