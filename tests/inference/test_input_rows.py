"""How a file of rows to be answered is read: as it is said, as its name says, as the run's own files are read."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.inference import terminal
from jaxlm.inference.evaluate import _file_like, evaluate_run
from jaxlm.inference.input_rows import open_input
from jaxlm.inference.predict import Predictor

CONLL = "-DOCSTART- -X- O\n\n1 Anna B-PER\n2 slept O\n\n1 Rome B-LOC\n"


def config(**source: Any) -> Config:
    data = {"train": {"rows": [{"a": 1}]}, "validation": source}
    return Config.model_validate({"name": "x", "model": {"init": "y"}, "task": {"kind": "tagging"}, "data": data})


def rows(path: Path, of: Config, **given: Any) -> list[Any]:
    with open_input(str(path), of, given) as opened:
        return [row for _, row in opened.records]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_files_like_those_of_the_run_are_read_like_them(tmp_path):
    names = {"columns": ["id", "tokens", "tags"]}
    sentences = [["Anna", "slept"], ["Rome"]]
    conll, text = write(tmp_path / "new.conll", CONLL), write(tmp_path / "new.txt", CONLL)
    own = config(path="dev.txt", format="conll", **names)
    for path in (conll, text):
        assert [row["tokens"] for row in rows(path, own)] == sentences
    other = write(tmp_path / "new.jsonl", '{"tokens": ["Anna"]}\n')
    assert rows(other, own) == [{"tokens": ["Anna"]}]
    semicolons = write(tmp_path / "b.conll", CONLL.replace(" ", ";"))
    assert [row["tokens"] for row in rows(semicolons, config(path="a.bio", separator=";", **names))] == sentences
    bare = write(tmp_path / "bare.txt", "Anna\nslept\n\nRome\n")
    assert [row["tokens"] for row in rows(bare, own, columns=("tokens",))] == sentences
    problem = rows(bare, own)[0].problem
    assert problem.startswith(
        "line 1 has 1 fields, expected 3 (id, tokens, tags); name the file's columns in --columns,"
    )
    with pytest.raises(UserError, match="--format to jsonl, csv, tsv, parquet or conll, or text"):
        rows(text, config(path="dev.conll", **names))
    assert [row["tokens"] for row in rows(text, config(path="dev.conll", **names), format="conll")] == sentences


def test_separators_of_tables_are_not_those_of_sentences(tmp_path):
    table = write(tmp_path / "a.csv", "text,n\nx,1\n")
    assert rows(table, config(path="a.conll", separator=";")) == [{"text": "x", "n": "1"}]
    assert rows(write(tmp_path / "b.csv", "text;n\nx;1\n"), config(path="a.tsv", separator=";")) == [
        {"text": "x", "n": "1"}
    ]


def test_utf8_is_read_as_utf8_whatever_the_run_was_trained_on(tmp_path, caplog):
    """Of an encoding of a byte to a letter, which would read `Ã¼` for `ü` and say nothing."""
    (tmp_path / "old.csv").write_bytes("text\nschön\n".encode("cp1252"))
    write(tmp_path / "new.csv", "\ufefftext\nschön\n")
    own = config(path="a.csv", encoding="cp1252")
    with caplog.at_level("INFO", "jaxlm"):
        assert rows(tmp_path / "old.csv", own) == [{"text": "schön"}] and not caplog.records
        assert rows(tmp_path / "new.csv", own) == [{"text": "schön"}]
        assert "new.csv: read as UTF-8, which all its letters are, and not as cp1252" in caplog.text
    assert rows(tmp_path / "old.csv", config(path="a.csv"), encoding="cp1252") == [{"text": "schön"}]
    assert _file_like(own.data.validation, str(tmp_path / "new.csv"), set()).encoding == "utf-8"
    assert _file_like(own.data.validation, str(tmp_path / "old.csv"), set()).encoding == "cp1252"


def test_lines_of_standard_input_are_texts_where_that_is_said(monkeypatch):
    lines = "\ufeffA man.\r\n\na\u2028b\n".encode() + b"\xff\nlast"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    own = Config.model_validate({"name": "x", "model": {"init": "y"}, "task": {"kind": "translation"}})
    [*texts, bad, last] = rows(Path("-"), own, format="text")
    assert [*texts, last] == [{"en": text} for text in ("A man.", "", "a\u2028b", "last")] and "UTF-8" in bad.problem
    with pytest.raises(UserError, match="--format csv: standard input holds jsonl or text"):
        rows(Path("-"), own, format="csv")
    several = Config.model_validate({**own.model_dump(), "task": {"kind": "translation", "template": "{a} {b}"}})
    with pytest.raises(UserError, match="reads the columns a, b; expected jsonl"):
        rows(Path("-"), several, format="text")


def test_a_file_of_one_column_is_no_split_of_parallel_files(tmp_path):
    files = {"en": "a.en", "de": "a.de"}
    task = {"kind": "translation"}
    parallel = {"name": "x", "model": {"init": "y"}, "task": task, "data": {"validation": {"path": files}}}
    write(tmp_path / "config.yaml", yaml.safe_dump(parallel))
    with pytest.raises(UserError, match=r"--split test data.test.path.de=FILE data.test.path.en=FILE"):
        evaluate_run(str(tmp_path), data=str(write(tmp_path / "b.en", "A man.\n")))


def test_a_line_of_prompts_that_is_not_utf8_is_said_and_the_next_is_read(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfone\r\n\xff\nthree"), "latin-1"))
    monkeypatch.setattr(terminal, "write_texts", lambda _, line, number: iter([f"{number}:{line}"]))
    terminal.converse(Mock(spec=Predictor, trained=Mock()))
    said = capsys.readouterr()
    assert said.out == "1:one\n\n3:three\n"
    assert "standard input, row 2: not UTF-8: byte 0xff" in said.err and said.err.endswith("\n")
