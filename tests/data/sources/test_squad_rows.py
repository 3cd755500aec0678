"""SQuAD files as rows."""

from __future__ import annotations

import json

import pytest

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.sources import load
from jaxlm.errors import UserError

QUESTION = {"id": "1", "question": "Who?", "answers": [{"text": "She", "answer_start": 0}]}
UNANSWERED = {"id": "2", "question": "What?", "answers": []}


def squad(*questions, version="1.1", context="She was."):
    return {"version": version, "data": [{"title": "T", "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def read(path, content, **settings):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    on_bad_row = settings.pop("on_bad_row", "stop")
    return load(SourceConfig(path=str(path), **settings), key="data.train", split="train", on_bad_row=on_bad_row)


def test_versions(tmp_path):
    """Each question is a row; version 2 says which have no answer. A .json file tells by its content what it is."""
    table = read(tmp_path / "a.json", squad(QUESTION, UNANSWERED), format="squad")
    assert table.rows[0] == {"title": "T", "context": "She was.", **QUESTION, "is_impossible": False}
    assert [row["is_impossible"] for row in table.rows] == [False, False]
    second = squad(QUESTION, UNANSWERED, {**QUESTION, "id": "3", "is_impossible": True}, version="v2.0")
    for form in (json.dumps(second), json.dumps(second, indent=2), "\ufeff" + json.dumps(second, indent=0)):
        table = read(tmp_path / "b.json", form)
        assert [row["is_impossible"] for row in table.rows] == [False, True, True]
    row = {"question": 'the "data": [{"paragraphs": [] of', "context": "x"}
    assert read(tmp_path / "c.json", json.dumps(row)).rows == (row,)
    assert read(tmp_path / "c.json", [row]).rows == (row,)


def test_bad_files(tmp_path):
    for content, message in [
        ({"data": 3}, "not in SQuAD's form"),
        ("{\n\n'", "line 3: not valid JSON"),
        ([QUESTION], "not in SQuAD's form"),
        ({"data": [{"title": "x"}]}, "an article without paragraphs"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, "a paragraph without qas"),
        (squad("x"), "a question that is no object"),
        (json.dumps(squad(QUESTION)).replace("Who", "\\ud83d"), "surrogate"),
    ]:
        with pytest.raises(UserError, match=message):
            read(tmp_path / "bad.json", content, format="squad")
    table = read(tmp_path / "bad.json", squad("x", QUESTION), format="squad", on_bad_row="skip")
    assert len(table) == 1 and table.skipped == 1 and table.where(0).endswith("row 2")
