"""How a file of rows to be answered is read: as it is said, as its name says, as the run's own files are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxlm.config.schema import Config
from jaxlm.errors import UserError
from jaxlm.inference.input_rows import open_input

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
    with pytest.raises(UserError, match="--format to jsonl, csv, tsv, parquet or conll"):
        rows(text, config(path="dev.conll", **names))
    assert [row["tokens"] for row in rows(text, config(path="dev.conll", **names), format="conll")] == sentences


def test_separators_of_tables_are_not_those_of_sentences(tmp_path):
    table = write(tmp_path / "a.csv", "text,n\nx,1\n")
    assert rows(table, config(path="a.conll", separator=";")) == [{"text": "x", "n": "1"}]
    assert rows(write(tmp_path / "b.csv", "text;n\nx;1\n"), config(path="a.tsv", separator=";")) == [
        {"text": "x", "n": "1"}
    ]
