"""Labelled rows in several files: read in a fixed order, each row under its own file's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm.config.loading import override_config
from jaxlm.config.schema import Config
from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.inference.input_rows import open_input


def read(path: Any, *, on_bad_row: str = "stop", **keys: Any) -> Table:
    source = SourceConfig.model_validate({"path": path, **keys})
    return load(source, key="data.train", split="train", on_bad_row=on_bad_row)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    for name, texts in {"b": ["b1", "b2"], "a": ["a1"], "c": ["c1", "c2", "c3"]}.items():
        (tmp_path / f"parts/{name}.csv").write_text("text,label\n" + "".join(f"{text},x\n" for text in texts))
    return tmp_path


def texts(table: Table) -> list[str]:
    return [row["text"] for row in table.rows]


def test_a_pattern_is_read_by_name_and_a_list_in_its_order(folder):
    assert texts(read("parts/*.csv")) == ["a1", "b1", "b2", "c1", "c2", "c3"]
    assert texts(read(["parts/c.csv", "parts/a.csv"])) == ["c1", "c2", "c3", "a1"]
    assert texts(read(["parts/c.csv", "parts/*.csv"])) == ["c1", "c2", "c3", "a1", "b1", "b2"]  # each file once
    assert texts(read("parts/*.csv", limit=4)) == ["a1", "b1", "b2", "c1"]


def test_each_row_has_its_place_in_its_own_file(folder):
    (folder / "parts/b.csv").write_text("text,label\nb1,x\nbad\nb2,x\n")
    with pytest.raises(UserError, match=r"parts/b\.csv, row 2 \(line 3\): expected 2 fields"):
        read("parts/*.csv")
    table = read("parts/*.csv", on_bad_row="skip")
    assert [table.where(i) for i in (0, 2, 3)] == [
        "parts/a.csv, row 1 (line 2)", "parts/b.csv, row 3 (line 4)", "parts/c.csv, row 1 (line 2)",
    ]  # fmt: skip
    assert table.skipped == 1 and table.name == "parts/*.csv (3 files)"
    assert table.select([4, 0]).where(0) == "parts/c.csv, row 2 (line 3)"


def test_files_of_other_columns_are_refused(folder):
    (folder / "parts/b.csv").write_text("label,text\nx,b1\n")  # their order may differ
    assert texts(read("parts/*.csv"))[1] == "b1"
    (folder / "parts/b.csv").write_text("txt,label\nb1,x\n")
    with pytest.raises(UserError, match=r"data\.train\.path: parts/b\.csv has no column 'text', which parts/a\.csv"):
        read("parts/*.csv")
    (folder / "d.jsonl").write_text(json.dumps({"text": "d", "label": "x", "more": 1}) + "\n")
    with pytest.raises(UserError, match=r"parts/a\.csv has no column 'more', which d\.jsonl has"):
        read(["parts/a.csv", "d.jsonl"])
    with pytest.raises(UserError, match=r"no column 'txt', which task.text asks for"):
        read(["parts/a.csv", "parts/c.csv"]).require("txt", key="task.text")


def test_what_is_not_there_is_named_with_its_folder(folder):
    with pytest.raises(
        UserError, match=r"no file matches parts/\*\.tsv; the folder parts holds a\.csv, b\.csv, c\.csv"
    ):
        read("parts/*.tsv")
    with pytest.raises(UserError, match=r"no file matches partz/\*\.csv; there is no folder partz"):
        read("partz/*.csv")
    with pytest.raises(UserError, match=r"no file parts/bb\.csv; did you mean"):
        read(["parts/a.csv", "parts/bb.csv"])
    with pytest.raises(ValueError, match="expected at least one file"):
        read([])


def test_rows_to_be_answered_are_read_as_the_first_of_several_files(folder):
    config = override_config(Config(name="x"), ["data.train={path: ['parts/*.csv', more.csv], separator: ';'}"])
    (folder / "new.csv").write_text("text;id\na, b;1\n")
    with open_input("new.csv", config) as rows:
        assert [row for _, row in rows.records] == [{"text": "a, b", "id": "1"}]


def test_parallel_files_belong_together_in_order(folder):
    for name, lines in {"1.en": "a\nb\n", "1.de": "A\nB\n", "2.en": "c\n", "2.de": "C\n"}.items():
        (folder / name).write_text(lines)
    table = read({"en": "*.en", "de": ["1.de", "2.de"]})
    assert [(row["en"], row["de"]) for row in table.rows] == [("a", "A"), ("b", "B"), ("c", "C")]
    assert table.where(2) == "2.en + 2.de, row 1"
    with pytest.raises(UserError, match=r"en has 2, de has 1 files; expected as many for each column"):
        read({"en": "*.en", "de": "1.de"})
    with pytest.raises(UserError, match=r"1\.en has 2 lines, 2\.de has 1 lines"):
        read({"en": "*.en", "de": ["2.de", "1.de"]})
