"""Lines of answers and samples: their columns, where they go, and what ends a line."""

from __future__ import annotations

import csv
import json
import os
from typing import Any

import pyarrow.parquet as pq
import pytest

from jaxlm.errors import UserError
from jaxlm.inference.output import HEADER_ROWS, answered, to_csv, to_jsonl, write_output
from jaxlm.inference.samples import save_samples
from jaxlm.inference.vector_files import write_parquet
from jaxlm.run.run_dir import RunDir


def test_columns_of_the_input_keep_their_values():
    row = {"prediction": 1, "input_prediction": 2, "text": "a"}
    assert answered(row, prediction=3) == {
        "input_input_prediction": 1,
        "input_prediction": 2,
        "text": "a",
        "prediction": 3,
    }


def test_parquet_holds_columns_of_any_values(tmp_path, caplog):
    """What has no type of parquet becomes JSON; a later row that does not fit is refused with its column."""
    odd: dict[str, list[Any]] = {"mixed": [1, "s"], "big": [2**70, 1], "empty": [{}, {}], "inner": [[{"a": {}}], None]}
    answer = {"prediction": {"vector": [1.0, 2.0]}}
    rows = [{name: values[i] for name, values in odd.items()} | {"n": i} | answer for i in range(2)]

    def write(rows: list[dict[str, Any]]) -> None:
        with (tmp_path / "a.parquet").open("wb") as file:
            write_parquet(rows, file)

    write(rows)
    for i, row in enumerate(pq.read_table(tmp_path / "a.parquet").to_pylist()):
        assert row["n"] == i and row["vector"] == [1.0, 2.0]
        for name, values in odd.items():
            read = None if row[name] is None else json.loads(row[name])
            assert read == values[i] and repr(name) in caplog.text
    late = [{"n": 1} | answer] * 4096
    with pytest.raises(UserError, match=r"--output: column 'n': expected int64, .* jsonl holds"):
        write([*late, {"n": "s"} | answer])
    write([*late, {"n": 2, "m": 1} | answer])
    assert "the column 'm', which none of the first 4096 rows has, is left out" in caplog.text


def test_a_table_holds_rows_that_differ(caplog):
    rows: list[dict[str, Any]] = [
        {"text": "a", "error": "no"},
        {"text": "b\nc", "n": None, "prediction": {"label": "x", "scores": {"x": 1.0}}},
        {"id": 7, "text": "d", "prediction": {"label": "y", "scores": {}}},
        *({"text": "e", "prediction": {"label": "x"}} for _ in range(HEADER_ROWS)),
        {"late": 1, "text": "f", "prediction": {"label": "z"}},
    ]
    read = list(csv.DictReader("".join(to_csv(rows)).splitlines(keepends=True)))
    assert list(read[0]) == ["text", "n", "id", "prediction.label", "prediction.scores.x", "error"]
    assert len(read) == len(rows) and read[0]["error"] == "no" and read[1]["text"] == "b\nc" and read[2]["id"] == "7"
    assert read[-1]["prediction.label"] == "z" and "the column 'late'" in caplog.text
    assert read[1]["prediction.scores.x"] == "1.0" and read[2]["prediction.scores.x"] == ""
    assert list(to_csv([{"error": "no"}])) == ["error\n", "no\n"] and list(to_csv([])) == ["error\n"]


def test_descriptors_are_written_where_they_are(tmp_path):
    """A shell's `{ echo first; jaxlm predict --output /dev/stdout; } > file` keeps its first line."""
    with (tmp_path / "out").open("w") as file:
        file.write("first\n")
        file.flush()
        for folder in ("/dev/fd", "/proc/self/fd"):
            write_output(f"{folder}/{file.fileno()}", to_jsonl([{"a": 1}]))
    assert (tmp_path / "out").read_text() == 'first\n{"a": 1}\n{"a": 1}\n'


def test_writers_of_one_file_keep_apart(tmp_path, monkeypatch):
    """The last to finish has it whole."""
    out = tmp_path / "out"

    def lines():
        yield "ours 1\n"
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: 1)
            write_output(str(out), ["theirs\n"])
        assert out.read_text() == "theirs\n"
        yield "ours 2\n"

    write_output(str(out), lines())
    assert out.read_text() == "ours 1\nours 2\n" and list(tmp_path.iterdir()) == [out]


def test_samples_are_lines_whatever_they_hold(tmp_path):
    run = RunDir(tmp_path)
    odd = "a\u2028b\x85c\x1ed\re"
    for step in (1, 2, 2):
        save_samples(run, [{"step": step, "text": odd}])
    lines = (tmp_path / "samples.jsonl").read_bytes().decode().rstrip("\n").split("\n")
    assert [json.loads(line) for line in lines] == [{"step": step, "text": odd} for step in (1, 2)]
