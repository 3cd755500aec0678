"""What users' files hold, well-formed and broken, and what the loader makes of it."""

from __future__ import annotations

import gzip
import io
import json
import logging
import sys
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources.sources import load, read_jsonl_stream
from jaxlm.data.sources.text_files import BadRow
from jaxlm.errors import UserError


def read(path, on_bad_row="stop", **source: Any):
    return load(SourceConfig(path=str(path), **source), key="data.train", split="train", on_bad_row=on_bad_row)


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, content: str | bytes):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return to_file


REAL_FILES = [  # path, rows as the data's own README counts them, how it is read
    ("classification/sst2/train.tsv", 6920, {"columns": ("sentence", "label")}),
    ("classification/sst2/validation.tsv", 872, {"columns": ("sentence", "label")}),
    ("classification/sms_spam/train.tsv", 3574, {"columns": ("label", "text")}),
    ("classification/cola/train.tsv", 8551, {"columns": ("source", "label", "star", "sentence")}),
    ("classification/banking77/train.csv", 8988, {}),
    ("classification/chnsenticorp/train.tsv", 7565, {"columns": ("text", "label")}),
    ("classification/chnsenticorp/test_unlabelled.tsv", 1200, {}),
    ("classification/tnews/validation.tsv", 10000, {"columns": ("text", "label")}),
    ("pair/mrpc/train.jsonl", 3668, {}),
    ("pair/rte/train.jsonl", 2490, {}),
    ("pair/snli_dev/validation.jsonl", 979, {}),
    ("pair/stsb/train.tsv", 5749, {}),
    ("pair/stsb/validation.tsv", 1500, {}),
    ("pair/afqmc/validation.txt", 4316, {"columns": ("text1", "text2", "label")}),
]


@pytest.mark.parametrize(("name", "rows", "source"), REAL_FILES, ids=[name for name, _, _ in REAL_FILES])
def test_real_files_have_all_their_rows(shared_data, name, rows, source):
    table = read(shared_data / name, **source)
    assert len(table) == rows
    assert all(tuple(row) == table.columns for row in table.rows)


def test_real_label_counts(shared_data):
    folder = shared_data / "classification"
    cola = read(folder / "cola/train.tsv", columns=("source", "label", "star", "sentence"))
    assert [sum(row["label"] == label for row in cola.rows) for label in "10"] == [6023, 2528]
    spam = read(folder / "sms_spam/train.tsv", columns=("label", "text"))
    assert [sum(row["label"] == label for row in spam.rows) for label in ("ham", "spam")] == [3132, 442]
    assert len({row["category"] for row in read(folder / "banking77/train.csv").rows}) == 77


def test_line_numbers_count_physical_lines_past_quoted_newlines(shared_data):
    path = shared_data / "classification/banking77/train.csv"
    table = read(path)
    lines = path.read_bytes().decode().split("\n")
    after_newline = next(i for i, row in enumerate(table.rows) if "\n" in row["text"]) + 1
    for i in (0, after_newline, len(table) - 1):
        assert lines[table.lines[i] - 1].strip('"').startswith(table.rows[i]["text"].split("\n")[0][:20])
    assert table.where(len(table) - 1) == f"{path}, row 8988 (line {len(lines) - 1 if not lines[-1] else len(lines)})"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.csv.gz", "a.jsonl", "a.jsonl.gz"])
def test_formats_agree(write, name):
    rows = [{"text": "one", "label": "1"}, {"text": "zwei é 三", "label": "0"}]
    if "jsonl" in name:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        sep = "," if "csv" in name else "\t"
        content = "".join(sep.join(row) + "\r\n" for row in [["text", "label"], *(list(r.values()) for r in rows)])
    raw = b"\xef\xbb\xbf" + content.encode()
    table = read(write(name, gzip.compress(raw, mtime=0) if name.endswith("gz") else raw))
    assert list(table.rows) == rows
    assert table.columns == ("text", "label")


def test_only_a_line_feed_ends_a_row(write):
    text = "a\u2028b\u0085c\x0cd\re"
    assert read(write("a.jsonl", json.dumps({"t": text}, ensure_ascii=False) + "\n")).rows[0]["t"] == text
    assert read(write("a.tsv", f"{text}\t1\n"), columns=("t", "y")).rows == ({"t": text, "y": "1"},)


def test_quotes_are_plain_in_tsv_unless_asked_for(write):
    path = write("a.tsv", 'text\tlabel\n"stray\t1\n"a\tb"\t0\n')
    with pytest.raises(UserError, match=r"row 2 \(line 3\): expected 2 fields.*found 3.*quoting: true"):
        read(path)
    assert read(write("b.tsv", '"stray\t1\nsay "hi"\t0\n'), columns=("t", "y")).rows[0]["t"] == '"stray'
    quoted = read(write("c.tsv", 'text\tlabel\n"a\tb\n""c"""\t0\n'), quoting=True)
    assert quoted.rows == ({"text": 'a\tb\n"c"', "label": "0"},)


@pytest.mark.parametrize("tail", ['x,1\n"never closed,0\ny,1\nz,0\n', 'x,1\n"open,0\ny," 1\n'])
def test_a_stray_quote_in_csv_never_swallows_rows(write, tail):
    path = write("a.csv", "text,label\n" + tail)
    for on_bad_row in ("stop", "skip"):  # nobody can tell how many rows to skip
        with pytest.raises(UserError, match=r"opened in the row at line 3 .*data\.train\.quoting: false"):
            read(path, on_bad_row)


def test_long_fields_and_one_column_files(write):
    assert len(read(write("a.csv", "text,y\n" + "x" * 300_000 + ",1\n")).rows[0]["text"]) == 300_000
    table = read(write("b.txt", "a\n\nb\n"), columns=("text",))
    assert [row["text"] for row in table.rows] == ["a", "", "b"]


def test_parquet(tmp_path):
    columns = {"text": [f"t{i}" for i in range(1000)], "label": list(range(1000)), "tags": [["a", "b"]] * 1000}
    columns["raw"] = [b"\xc3\xa9"] * 1000
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet", row_group_size=64)
    table = read(tmp_path / "a.parquet")
    assert table.columns == ("text", "label", "tags", "raw")
    assert table.rows[999] == {"text": "t999", "label": 999, "tags": ["a", "b"], "raw": "é"}
    assert len(table) == 1000
    assert table.where(16) == f"{tmp_path / 'a.parquet'}, row 17"
    (tmp_path / "b.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="b.parquet: not a readable parquet file"):
        read(tmp_path / "b.parquet")


def test_inline_rows_with_rename_and_limit():
    rows = ({"s": "a", "y": 1}, {"s": "b"}, {"s": "c"})
    source = SourceConfig(rows=rows, rename={"s": "text"}, limit=2)
    table = load(source, key="data.train", split="train")
    assert table.rows == ({"text": "a", "y": 1}, {"text": "b", "y": None})
    assert table.where(1) == "data.train.rows, row 2"
    with pytest.raises(UserError, match="no column 'sentence'.*its columns are: 's', 'y'"):
        load(SourceConfig(rows=rows, rename={"sentence": "text"}), key="data.train", split="train")
    with pytest.raises(UserError, match="two columns named 'y'"):
        load(SourceConfig(rows=rows, rename={"s": "y"}), key="data.train", split="train")


BAD_ROWS = [
    ("a.jsonl", '{"t": "a"}\n\n{"t": }\n', r"row 2 \(line 3\): not valid JSON: Expecting value, column 7"),
    ("a.jsonl", '{"t": "a"}\n["b"]\n', r"row 2: expected a JSON object .* found a list"),
    ("a.jsonl", '{"t": "a"}\n{"t": "\\ud83d"}\n', r"row 2: .*surrogate"),
    ("a.jsonl", '{"t": "a"}\n{"t": ' + "9" * 5000 + "}\n", r"row 2: not readable JSON"),
    ("a.csv", "t,y\na,1\nb\n", r"row 2 \(line 3\): expected 2 fields \(t, y\), found 1"),
    ("a.csv", 't,y\na,1\n"b"c,1\n', r"row 2 \(line 3\): misplaced double quote"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_ROWS)
def test_a_bad_row_stops_or_is_skipped_and_counted(write, caplog, name, content, message):
    path = write(name, content)
    with pytest.raises(UserError, match=f"{name}, {message}"):
        read(path)
    with caplog.at_level(logging.WARNING, logger="jaxlm"):
        table = read(path, on_bad_row="skip")
    assert (len(table), table.skipped, table.rows[0]["t"]) == (1, 1, "a")
    assert "1 of 2 rows are bad and were skipped" in caplog.text
    with pytest.raises(UserError, match="all 1 rows are bad"):
        read(write("b.jsonl", "{\n"), on_bad_row="skip")


def test_rows_after_a_skipped_one_keep_their_number(write):
    table = read(write("a.csv", "t,y\na,1\nb\nc,1\n"), on_bad_row="skip")
    assert table.where(1).endswith("a.csv, row 3 (line 4)")
    assert table.select([1]).where(0) == table.where(1)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv.gz"])
def test_empty_files(write, name):
    empty = gzip.compress(b"", mtime=0) if name.endswith("gz") else b""
    with pytest.raises(UserError, match=f"{name}: the file is empty"):
        read(write(name, empty))
    with pytest.raises(UserError, match="no rows; data.train needs at least one row"):
        read(write("header.csv", "text,label\n"))


def test_wrong_encoding_names_the_byte(write):
    path = write("a.csv", b"text,label\n" + b"x" * 10_000 + b",1\ncaf\xe9,0\n")
    offset = len("text,label\n") + len("x" * 10_000 + ",1\n") + len("caf")
    message = rf"not utf-8: byte 0xe9 at byte offset {offset} \(line 3\).*data\.train\.encoding"
    with pytest.raises(UserError, match=message):
        read(path)
    assert read(path, encoding="latin-1").rows[1]["text"] == "café"
    utf16 = write("b.csv", "text,label\né,0\n".encode("utf-16"))
    with pytest.raises(UserError, match="byte offset 0 .*begins as UTF-16 does"):
        read(utf16)
    with pytest.raises(UserError, match="byte offset 0 .*begins as UTF-16 does"):
        read(utf16, on_bad_row="skip")
    assert read(utf16, encoding="utf-16").rows == ({"text": "é", "label": "0"},)
    for unknown in ("utf-9", "hex"):
        with pytest.raises(UserError, match=rf"data\.train\.encoding: unknown encoding '{unknown}'"):
            read(path, encoding=unknown)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"text": "good"}\n{"text": "caf\xe9"}\n{"text": "\xc3\xa9"}\n'),
        ("a.csv", b'n,text\n1,good\n2,"caf\xe9\nau lait"\n3,\xc3\xa9\n'),
        ("a.tsv.gz", gzip.compress(b"text\tn\ngood\t1\ncaf\xe9\t2\n\xc3\xa9\t3\n", mtime=0)),
        ("a.conll", b"good X\n\ncaf\xe9 X\n\n\xc3\xa9 X\n"),
    ],
)
def test_a_row_that_is_not_utf8_is_skipped_and_counted(write, caplog, name, content):
    path = write(name, content)
    column = {"columns": ("text", "tag")} if name.endswith("conll") else {}
    with pytest.raises(UserError, match="byte 0xe9 at byte offset"):
        read(path, **column)
    table = read(path, on_bad_row="skip", **column)
    assert [str(row["text"]).strip("[']") for row in table.rows] == ["good", "é"] and table.skipped == 1
    assert table.numbers == (1, 3) and "1 of 3 rows are bad" in caplog.text
    assert "row 2" in caplog.text and "not UTF-8: byte 0xe9" in caplog.text


def test_what_rows_stand_on_must_be_utf8(write):
    """A header and a list of JSON are no rows that could be left out."""
    with pytest.raises(UserError, match=r"a\.csv, header: not UTF-8: byte 0xe9"):
        read(write("a.csv", b"caf\xe9,label\na,b\n"), on_bad_row="skip")
    with pytest.raises(UserError, match=r"a\.json: the JSON list is broken in line 2: not UTF-8: byte 0xe9"):
        read(write("a.json", b'[{"t": "a"},\n{"t": "\xe9"}]'), on_bad_row="skip")


def test_truncated_gzip(write):
    with pytest.raises(UserError, match="not a whole gzip file"):
        read(write("a.jsonl.gz", gzip.compress(b'{"t": "a"}\n' * 100, mtime=0)[:-12]))
    with pytest.raises(UserError, match="not a whole gzip file"):
        read(write("b.jsonl.gz", b'{"t": "a"}\n'))


def test_missing_files_name_their_neighbours(write, tmp_path, monkeypatch):
    write("train.tsv", "a\tb\n")
    with pytest.raises(UserError, match=r"data\.train\.path: no file .*trian\.tsv; did you mean '.*/train\.tsv'\?"):
        read(tmp_path / "trian.tsv")
    with pytest.raises(UserError, match="there is no folder"):
        read(tmp_path / "nowhere" / "train.tsv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"working directory, {tmp_path}"):
        read("x.tsv")
    with pytest.raises(UserError, match="is a folder"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.xlsx", b"PK\x03\x04", "is a spreadsheet: save it as csv"),
        ("a.zip", b"PK\x03\x04", "is an archive: unpack it"),
        ("a.jsonl.xz", b"x", "is an archive: unpack it, or compress with gzip"),
        ("a.pkl", b"\x80", "save it as parquet or jsonl"),
        ("a.csv", b"PK\x03\x04\x14\0\n", "begins as a zip archive or a spreadsheet does; .* save it as csv"),
        ("a.jsonl", b"PAR1\n", "begins as parquet does; name it .parquet"),
        ("a.csv", gzip.compress(b"text,label\na,b\n", mtime=0), "begins as gzip does; name it .gz"),
        ("a.csv", "text,label\na,b\n".encode("utf-16-le"), "as in UTF-16; set data.train.encoding=utf-16-le"),
        ("a.tsv", "text\tlabel\na\tb\n".encode("utf-16-be"), "as in UTF-16; set data.train.encoding=utf-16-be"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:a\nsize 5\n", "git lfs pull"),
        (
            "a.csv",
            b"t,label\na,b\n t ,label\nc,d\n",
            r"row 2 \(line 3\): the names of the columns stand here once more",
        ),
    ],
)
def test_files_that_are_not_what_their_name_says(write, name, content, message):
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        read(write(name, content))


def test_headers(write):
    with pytest.raises(UserError, match=r"a\.csv: the header names column 'x' more than once; .*data\.train\.columns"):
        read(write("a.csv", "x,y,x\n1,2,3\n"))
    with pytest.raises(UserError, match=r"column 2 of the header has no name"):
        read(write("b.csv", "x,,y\n1,2,3\n"))
    table = read(write("c.tsv", "good film\t1\nbad film\t0\n"))
    with pytest.raises(UserError, match=r"no column 'label', which task\.label asks for.*set data\.train\.columns"):
        table.require("label", key="task.label")
    named = read(write("d.tsv", "good film\t1\n"), columns=("sentence", "label"))
    named.require("sentence", "label", key="task.text")
    with pytest.raises(UserError, match=r"its columns are: 'sentence', 'label'; did you mean 'sentence'\?$"):
        named.require("sentense", key="task.text")


def test_keys_that_would_be_ignored_are_refused(write):
    refused: dict[str, Any] = {"split": "test", "data_dir": "x", "columns": ("t",)}
    for key, value in refused.items():
        with pytest.raises(UserError, match=rf"data\.train\.{key}: only"):
            read(write("a.jsonl", '{"t": 1}\n'), **{key: value})
    for name in ("a.txt", "a.txt.gz", "a"):
        with pytest.raises(UserError, match=r"does not tell the format; set data\.train\.format"):
            read(write(name, "x\n"))


def test_jsonl_stream():
    stream = io.BytesIO(b'\xef\xbb\xbf{"t": "\xc3\xa9"}\n\n{"t": 2}\n')
    assert list(read_jsonl_stream(stream, "stdin")) == [(1, {"t": "é"}), (3, {"t": 2})]
    assert list(read_jsonl_stream(io.StringIO('{"t": 1}'), "stdin")) == [(1, {"t": 1})]
    [_, (line, bad)] = read_jsonl_stream(io.BytesIO(b'{"t": 1}\n\noops\n'), "stdin")
    assert line == 3 and isinstance(bad, BadRow) and "not valid JSON" in bad.problem
    [_, (line, bad), last] = read_jsonl_stream(io.BytesIO(b'{"t": 1}\n{"t": "\xff"}\n{"t": 2}'), "stdin")
    assert line == 2 and isinstance(bad, BadRow) and last == (3, {"t": 2})
    assert "not UTF-8: byte 0xff at byte offset 16" in bad.problem
    listed = io.StringIO('\n[{"t": 1},\n{"t": "\u2028"}]\n')
    assert list(read_jsonl_stream(listed, "stdin")) == [(2, {"t": 1}), (3, {"t": "\u2028"})]
    [(line, bad), good] = read_jsonl_stream(io.StringIO('[1]\n{"t": 1}\n'), "stdin")
    assert line == 1 and isinstance(bad, BadRow) and "found a list" in bad.problem and good == (2, {"t": 1})


def read_tfds(folder, **changes: Any):
    source: dict[str, Any] = {"tfds": "reviews_for_test", "data_dir": str(folder)} | changes
    return load(SourceConfig(**source), key="data.test", split="test")


def test_tfds_reads_array_record_without_tensorflow(prepared):
    table = read_tfds(prepared / "array_record", split="train")
    by_text = {row["text"]: row for row in table.rows}
    assert sorted(by_text) == sorted(f"é{i}" for i in range(30))
    assert by_text["é3"] == {
        "text": "é3", "label": "pos", "bare": 2, "stars": 1.5, "tags": ["b", "a"], "words": ["x"],
        "spans": {"kind": ["y"], "at": [3]},
    }  # fmt: skip
    assert table.where(2) == "tfds reviews_for_test:train, row 3"
    assert "tensorflow" not in sys.modules


def test_tfds_splits(prepared):
    test = read_tfds(prepared / "array_record")  # the key's own split
    assert [row["label"] for row in test.rows] == [None] * 5  # TFDS's -1 is no label
    assert len(read_tfds(prepared / "array_record", split="train[:40%]")) == 12
    with pytest.raises(UserError, match=r"data\.test\.split: .*no split 'dev'.*its splits are: test, train"):
        read_tfds(prepared / "array_record", split="dev")


def test_tfds_refuses_parquet_lost_rows_and_unknown_names(prepared, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="stored as parquet; only array_record"):
        read_tfds(prepared / "parquet")
    with pytest.raises(UserError, match="TFDS knows no dataset 'no_such_set'"):
        read_tfds(tmp_path, tfds="no_such_set")
    source = sys.modules["tensorflow_datasets"].core.data_sources.array_record.ArrayRecordDataSource
    monkeypatch.setattr(source, "__len__", lambda self: 4)
    with pytest.raises(UserError, match=r"hold 4 rows, but .*dataset_info\.json records 5"):
        read_tfds(prepared / "array_record")


def test_tfds_prepares_what_is_not_there(monkeypatch, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    asked = []

    def offline(self, *, file_format):
        asked.append(file_format)
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", offline)
    with pytest.raises(UserError, match=r"glue/sst2 is not prepared in .*no network.*tfds build"):
        read_tfds(tmp_path, tfds="glue/sst2")
    assert asked == ["array_record"]


def test_tfds_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'jaxlm\[tfds\]'"):
        load(SourceConfig(tfds="glue/sst2"), key="data.test", split="test")
