"""The texts that a tokenizer is trained on: formats, patterns, streaming, and files that are refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.memory import peak

from jaxlm.errors import UserError
from jaxlm.setup.tokenizer_training import input_files, read_texts


@pytest.mark.parametrize("name", ["line.txt.gz", "rows.jsonl.zst"])
def test_files_are_streamed(tmp_path, name):
    """40 MB in a single line, or in many rows."""
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else pyarrow.CompressedOutputStream(path, "zstd") as file:
        for _ in range(1000):
            file.write(
                b"word " * 8000 if path.suffix == ".gz" else (json.dumps({"text": "word " * 8000}) + "\n").encode()
            )
    total = []
    assert peak(lambda: total.append(sum(map(len, read_texts([path]))))) < 6
    assert total == [40_000_000]


def test_parquet_is_read_by_row_group(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["word " * 200] * 40_000}), path, row_group_size=1000)
    texts = read_texts([path])
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() - before for _ in texts)
    assert most < 8e6  # of 40 MB


LINES = ["first line", "  two  spaces ", "今天 🙂", "a\u2028b\u0085c", "last"]


def write(path: Path, column: str = "text") -> Path:
    """LINES, in the format and compression of the name."""
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if plain.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"n": [0] * 6, column: [*LINES, None]}), plain)
    elif plain.suffix == ".jsonl":
        rows = [{"n": 0, column: text} for text in [*LINES, None]]
        plain.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    else:
        plain.write_text("\n".join([*LINES[:2], "", *LINES[2:]]), "utf-8")
    content = plain.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content, mtime=0))
    elif path.suffix == ".zst":
        path.write_bytes(pyarrow.compress(content, "zstd", asbytes=True))
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", ["train.en", "a.txt", "a.jsonl", "a.parquet"])
def test_formats_say_the_same(tmp_path, form, compression):
    path = write(tmp_path / f"{form}{compression}")
    assert list(read_texts([path, path])) == [*LINES, *LINES]


def test_column_line_ends_and_byte_order_mark(tmp_path):
    assert list(read_texts([write(tmp_path / "a.jsonl", "body")], "body")) == LINES
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_texts([tmp_path / "dos.txt"])) == ["one", "two"]
    (tmp_path / "two.gz").write_bytes(gzip.compress(b"one\n", mtime=0) + gzip.compress(b"two", mtime=0))
    assert list(read_texts([tmp_path / "two.gz"])) == ["one", "two"]
    member = [pyarrow.compress(text, "zstd", asbytes=True) for text in (b"one\n", b"two")]
    (tmp_path / "two.zst").write_bytes(b"".join(member))
    assert list(read_texts([tmp_path / "two.zst"])) == ["one", "two"]


def test_a_long_line_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.data.corpus.plain_text.PIECE", 7)
    (tmp_path / "a").write_text("今天🙂" * 20 + "\nx\n", "utf-8")
    pieces = list(read_texts([tmp_path / "a"]))
    assert "".join(pieces) == "今天🙂" * 20 + "x" and pieces[-1] == "x" and len(pieces) == 10


def test_patterns(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "[x].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [str(path.relative_to(tmp_path)) for path in input_files([f"{tmp_path}/[ab].txt", f"{tmp_path}/**/*.txt"])]
    assert names == ["a.txt", "b.txt", "[x].txt", "deep/c.txt"]
    assert input_files([f"{tmp_path}/[x].txt"]) == (tmp_path / "[x].txt",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            b"fine\n\xff\n",
            r"a\.txt, line 2: not UTF-8: byte 0xff cannot be decoded; convert the file to UTF-8",
        ),
        ("a.txt", b"fine\n\xe4", r"a\.txt, line 2: not UTF-8: byte 0xe4 cannot be decoded"),
        ("a.txt.gz", gzip.compress(b"x" * 99999, mtime=0)[:-20], r"a\.txt\.gz: not a whole gzip file"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz: not a whole gzip file"),
        ("a.txt.zst", b"plain", r"a\.txt\.zst: .*not a whole zstd file"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl, row 2: not valid JSON"),
        ("a.jsonl", b'{"body": "x", "n": 1}', r"a\.jsonl: no column 'text', which --column asks for; .*'body', 'n'"),
        ("a.jsonl", b'["x"]', r"a\.jsonl, row 1: expected a JSON object"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl, row 1: expected text in column 'text', found int; correct the row"),
        ("a.jsonl", b'{"text": "\\ud83d"}', r"a\.jsonl, row 1: .*surrogate"),
        ("a.parquet", b"PAR1", r"a\.parquet: not a readable parquet file"),
        ("a.json", b'[\n{"text": "x"}\n', r"a\.json: the JSON list is broken after line 2"),
        ("a.csv.gz", b"", r"a\.csv\.gz: \.csv is not read here; expected text .*\.jsonl or \.parquet"),
    ],
)
def test_bad_input(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        list(read_texts(input_files([str(tmp_path / name)])))
    assert "data." not in str(error.value) and "--input." not in str(error.value)  # keys that a command has not


def test_bad_parquet_columns(tmp_path):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'body', which --column asks for; its columns are: 'n', 'text'"):
        list(read_texts([path], "body"))
    with pytest.raises(UserError, match="row 1: expected text in column 'n', found int"):
        list(read_texts([path], "n"))


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"--input: no file matches .*/\*\.txt"):
        input_files([f"{tmp_path}/*.txt"])
    with pytest.raises(UserError, match="--input: .* is a folder; name a file in it"):
        input_files([str(tmp_path)])
