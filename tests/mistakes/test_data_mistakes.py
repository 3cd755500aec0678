"""Mistakes in data: files that are not there or of another kind, encodings, headers, labels; and what works.

Elsewhere: empty texts, wrong encodings, rows that are no JSON (tests/commands/test_bad_input.py); more of every format
(tests/data/sources).
"""

from __future__ import annotations

import gzip
import io

import pyarrow
import pyarrow.parquet
import pytest
from helpers.mistakes import READY, words

from jaxlm.errors import RunFailure
from jaxlm.training import plan

CSV = "text,label\ngood film,pos\nbad film,neg\nfine film,pos\n"


def parquet(**columns: list[str]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


PARQUET = parquet(text=["good film", "bad film"], label=["pos", "neg"])


def test_a_file_that_is_not_there(say, config, tmp_path):
    command = ("finetune", "--config", config, "--dry-run")
    said = say(*command, f"data.train.path={config.parent}/trian.jsonl")
    words(said, "data.train.path: no file", f"did you mean '{config.parent}/train.jsonl'?")
    said = say(*command, "data.train.path=data/train.jsonl")
    words(said, "there is no folder data either", f"the working directory, {tmp_path / 'cwd'}")
    words(say(*command, f"data.train.path={config.parent}"), f"{config.parent} is a folder; name a file in it")


def test_the_home_folder(say, config, monkeypatch):
    monkeypatch.setenv("HOME", str(config.parent))
    assert READY in say("finetune", "--config", config, "--dry-run", "data.train.path=~/train.jsonl", status=1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", b"\xef\xbb\xbf" + CSV.encode()),
        ("crlf.csv", CSV.replace("\n", "\r\n").encode()),
        ("t.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("t.csv.zst", pyarrow.compress(CSV.encode(), "zstd", asbytes=True)),
        ("t.parquet", PARQUET),
        ("t.jsonl", b'{"text": "good\xe2\x80\xa8film", "label": "pos"}\n{"text": "bad", "label": "neg"}\n'),
    ],
    ids=["byte order mark", "carriage returns", "gzip", "zstd", "parquet", "line separator"],
)
def test_what_works(name, content, with_training_file):
    assert READY in with_training_file(name, content, status=1)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", CSV.replace(",", ";"), ("separator",)),
        ("t.xlsx", b"PK\x03\x04" + bytes(40), ("is a spreadsheet: save it as csv (UTF-8)",)),
        ("t.csv", CSV.encode("utf-16"), ("UTF-16", "encoding")),
        ("t.csv", "text,label\ncafé,pos\nbad,neg\n".encode("latin-1"), ("offset 14", "line 2", "data.train.encoding")),
        ("t.csv", "text,label,text\na,pos,b\n", ("'text' more than once",)),
        ("t.csv", "good film,pos\nbad film,neg\n", ("no column 'text'", "columns")),
        ("t.csv", CSV + "so so,\n", ("row 4", "label", "data.on_bad_row=skip")),
        ("t.csv", PARQUET, ("begins as parquet does; name it .parquet",)),
        ("t.jsonl.zst", PARQUET, ("not a whole zstd file",)),
        ("t.parquet", CSV, ("parquet",)),
        ("t.parquet", parquet(sentence=["good film"], label=["pos"]), ("no column 'text'", "'sentence', 'label'")),
        ("t.csv.zst", CSV, ("zst",)),
    ],
    ids=["semicolon", "xlsx", "utf-16", "latin-1", "column twice", "no header", "empty label", "parquet as csv",
         "parquet as zstd", "csv as parquet", "parquet without the column", "csv as zstd"],
)  # fmt: skip
def test_files_of_another_kind(name, content, expected, with_training_file):
    words(with_training_file(name, content), name, *expected)


def test_one_class(with_training_file):
    said = with_training_file("t.csv", "text,label\ngood,pos\nfine,pos\n")
    words(said, "task.label=label: expected at least two different labels, found pos; name them in task.labels")


def test_a_header_and_columns(with_training_file):
    words(with_training_file("t.csv", CSV, more=", columns: [text, label]"), "header", "columns")


def test_a_label_that_only_validation_has(with_training_file, tmp_path):
    (tmp_path / "v.csv").write_text("text,label\ngood,pos\nmixed,mixed\n")
    said = with_training_file("t.csv", CSV, f"data.validation={{path: {tmp_path / 'v.csv'}}}")
    words(said, "v.csv, row 2", "'mixed'", "task.labels", "data.on_bad_row=skip")


def test_numbers_as_labels(with_training_file):
    said = with_training_file("t.csv", "text,label\na good,0.0\nbad,1.0\nfox,1.0\n", status=1)
    words(said, READY, "task: binary", "0 1", "1 2")


def test_labels_that_differ_by_case_or_a_space(with_training_file):
    text = 'text,label\na,pos\nb,Pos\nc,"pos "\nd,neg\ne,pos\n'
    words(with_training_file("t.csv", text, status=1), READY, "labels differ only by case, spaces", "data.clean.labels")


def test_a_text_longer_than_the_model_can_read(say, config):
    said = say("finetune", "--config", config, "--dry-run", "data.max_length=4096")
    words(said, "data.max_length=4096", "at most 64")


def test_more_batch_than_data(say, config, monkeypatch):
    def stop(*_args, **_options):
        raise RunFailure(READY)

    monkeypatch.setattr("jaxlm.cost.dryrun.make_plan", plan.make_plan)  # which says it
    monkeypatch.setattr(plan, "build_optimizer", stop)
    said = say("finetune", "--config", config, "--dry-run", "train.batch_size=500", status=1)
    words(said, "train.batch_size=500 is more than the training data, 64 rows: an epoch is one step")
