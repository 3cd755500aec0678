"""Mistakes in rows that are to be answered and in where answers go; what works stays.

Elsewhere: rows that cannot be answered, pipes and links (tests/commands/test_bad_input.py); how files are read
(tests/inference/test_input_rows.py); mistyped inputs and runs (test_model_mistakes.py).
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.finetuning_runs import read_jsonl, write_jsonl
from helpers.mistakes import words

from jaxlm.inference.output import answered
from jaxlm.inference.predict import Predictor


@pytest.fixture
def predict(say, classifier, tmp_path, monkeypatch) -> Callable[..., str]:
    """Writes a file of rows, and returns what is said when they are answered; nothing is computed."""

    def answer(_self: Predictor, records, _name: str, _first: int = 1):
        for _, row in records:
            yield answered(row, prediction={"label": "pos"})

    def execute(
        name: str, content: str | bytes | None, *options: str, output: str = "out.jsonl", status: int = 2
    ) -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        if status != 2:
            monkeypatch.setattr(Predictor, "answer", answer)
        files = ("--input", path, "--output", tmp_path / output)
        return say("predict", "--run", classifier, *files, *options, status=status)

    return execute


@contextmanager
def files_end_at(size: int) -> Generator[None, None, None]:
    """As on a full disk, nothing can be written behind so many bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", "txt,n\ngood,1\n", ("t.csv, row 1", "no column 'text'; it has: txt, n")),
        ("t.jsonl", '{"text": ["a", "b"]}\n', ("t.jsonl, row 1", "expected a text, found a list")),
        ("t.jsonl", '{"text": "a"}\n{"text": {"a": 1}}\n', ("t.jsonl, row 2", "expected a text, found an object")),
        ("t.dat", "good\n", ("--input", "t.dat does not tell the format; set --format to jsonl, csv")),
        ("t.xlsx", b"PK\x03\x04", ("--input", "is a spreadsheet: save it as csv")),
        ("t.parquet", "text\ngood\n", ("t.parquet", "parquet")),
        ("", None, ("--input", "is a folder; name a file in it")),
    ],
    ids=["column", "list", "object", "suffix", "spreadsheet", "no parquet", "folder"],
)
def test_inputs(name, content, expected, predict, tmp_path):
    words(predict(name, content, "--on-bad-row", "stop"), *expected)
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("", "is a folder; name a file in it"),
        ("t.csv", "is the input, whose rows the answers would replace; name another file"),
        ("out.xlsx", "expected a name that ends in .jsonl, .csv or .tsv"),
        ("out.parquet", "expected a name that ends in .jsonl, .csv or .tsv"),
    ],
    ids=["folder", "input", "spreadsheet", "vectors"],
)
def test_outputs(output, expected, predict, tmp_path):
    words(predict("t.csv", "text\ngood\n", output=output), "--output", expected)
    assert (tmp_path / "t.csv").read_text() == "text\ngood\n" and not (tmp_path / "out.xlsx").exists()


def test_what_works(predict, tmp_path):
    """A file without rows; an output that is there is replaced; its folder is made."""
    (tmp_path / "out.jsonl").write_text("old\n")
    words(predict("empty.csv", "", status=0), "empty.csv: 0 rows")
    assert (tmp_path / "out.jsonl").read_text() == ""
    words(predict("t.csv", "text\ngood\n", output="out.conll", status=0), "jsonl is written, a line to a row")
    words(predict("t.csv", "text\ngood\n", output="new/folder/out.jsonl", status=0), "wrote 1 row to")
    assert read_jsonl(tmp_path / "new/folder/out.jsonl") == [{"text": "good", "prediction": {"label": "pos"}}]


def test_a_full_disk(predict, tmp_path):
    rows = [{"text": "good " * 400}] * 40
    write_jsonl(tmp_path / "t.jsonl", rows)
    with files_end_at(50_000):
        said = predict("t.jsonl", None, status=1)
    words(said, "cannot be written", str(tmp_path / "out.jsonl"))
    assert [path.name for path in Path(tmp_path).iterdir() if "out" in path.name] == []
    write_jsonl(tmp_path / "t.jsonl", rows[:1])
    words(predict("t.jsonl", None, output="/dev/full", status=1), "No space left")
