"""analysis.json: what a task hands to the page."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from jaxlm.errors import RunFailure, UserError
from jaxlm.report.sections import ReportSection, excerpt, read_analysis, write_analysis


def test_sections_are_read_back_as_plain_values(tmp_path):
    path = tmp_path / "analysis.json"
    content = {"labels": ("a", "b\ud800"), "counts": np.array([[1, 2], [3, 4]]), "totals": [np.int64(3), math.nan]}
    write_analysis(path, [ReportSection("Matrix", "matrix", content, "a note"), ReportSection("T", "table", TABLE)])
    matrix, table = read_analysis(path)
    plain = {"labels": ["a", "b\ud800"], "counts": [[1, 2], [3, 4]], "totals": [3, None]}
    assert matrix == ReportSection("Matrix", "matrix", plain, "a note")
    assert table.note == "" and table.content == {"columns": ["x"], "rows": [[1.5], [None]]}
    assert set(json.loads(path.read_text())[0]) == {"title", "kind", "content", "note"}
    assert [p.name for p in tmp_path.iterdir()] == ["analysis.json"]
    write_analysis(path, [])
    assert not path.exists() and read_analysis(path) == []


TABLE = {"columns": ["x"], "rows": [[np.float32(1.5)], [math.inf]]}


def test_mistakes_of_a_task_are_named(tmp_path):
    path = tmp_path / "analysis.json"
    with pytest.raises(ValueError, match="section 'T': a table without 'rows'"):
        write_analysis(path, [ReportSection("T", "table", {"columns": []})])
    with pytest.raises(ValueError, match="unknown kind 'map'"):
        write_analysis(path, [ReportSection("T", "map", {})])  # pyright: ignore[reportArgumentType]
    path.mkdir()
    with pytest.raises(RunFailure, match=r"analysis\.json: cannot be written"):
        write_analysis(path, [ReportSection("T", "table", TABLE)])


@pytest.mark.parametrize(
    "text", ['[{"title"', "[1]", "3", '[{"title": "a"}]', '[{"title": "a", "kind": "table", "content": {}}]']
)
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "analysis.json").write_text(text)
    with pytest.raises(UserError, match=r"analysis\.json: expected a list of report sections"):
        read_analysis(tmp_path / "analysis.json")


def test_excerpts_are_cut_at_a_word():
    cut = excerpt("word " * 100)
    assert len(cut) < 300 and cut.endswith("word …")
    assert len(excerpt("字" * 1000)) < 300
    assert excerpt("short\nline\x00") == "short\nline\ufffd"
    assert excerpt("several words", 9) == "several …"
    assert excerpt(" " * 300 + "x") == " …"
