"""Documents of every kind of source: what is read, in what pieces, from any place on, and what is refused."""

from __future__ import annotations

import gzip
import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from helpers.few_docstrings import few_docstrings
from helpers.paths import TESTS

from jaxlm.data.config import CleanConfig, SourceConfig
from jaxlm.data.corpus import plain_text
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.sources import stdlib_docstrings
from jaxlm.data.sources.cleaning import DocumentCleaner, clean_text
from jaxlm.errors import UserError
from jaxlm.files import read_sealed

TEXTS = ["one", "zwei é 三", "a\u2028b\u0085c", "x " * 50]


def reader(source: dict[str, Any], on_bad_row="stop", column="text") -> Documents:
    config = SourceConfig.model_validate(source)
    return Documents(config, key="data.train", split="train", text_column=column, on_bad_row=on_bad_row)


def texts_of(pieces):
    """Whole documents, put together from their pieces."""
    found, open_ = [], ""
    for piece in pieces:
        if piece.problem is None:
            open_ += piece.text
            if piece.ends:
                found.append(open_)
                open_ = ""
    assert not open_
    return found


def read(source, **kwargs):
    return texts_of(reader(source, **kwargs).read())


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, content: str | bytes):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content.encode() if isinstance(content, str) else content
        if path.suffix == ".gz":
            raw = gzip.compress(raw, mtime=0)
        elif path.suffix == ".zst":
            raw = pyarrow.compress(raw, codec="zstd", asbytes=True)
        path.write_bytes(raw)
        return str(path)

    return to_file


def rows_as(kind: str, texts) -> str | bytes:
    if kind == "jsonl":
        return "".join(json.dumps({"text": text, "n": 1}, ensure_ascii=False) + "\n" for text in texts)
    if kind == "csv":
        return "n,text\n" + "".join(f'1,"{text}"\n' for text in texts)
    if kind == "tsv":
        return "text\tn\n" + "".join(f"{text}\t1\n" for text in texts)
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"n": [1] * len(texts), "text": texts})
    pyarrow.parquet.write_table(table, sink, row_group_size=3)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "name", [f"a.{kind}{suffix}" for kind in ("jsonl", "csv", "tsv") for suffix in ("", ".gz", ".zst")] + ["a.parquet"]
)
def test_rows_of_every_format(write, name):
    path = write(name, rows_as(name.split(".")[1], TEXTS))
    assert read({"path": path}) == TEXTS
    assert read({"path": path, "limit": 2}) == TEXTS[:2]
    assert read({"path": path, "rename": {"text": "body"}}, column="body") == TEXTS


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_plain_text_is_a_document_a_line_or_what_stands_between_blank_lines(write, suffix):
    content = "\ufeff\none\r\ntwo\n\n  \nthree\u2028four\n\n\n\nfive"
    path = write(f"a.txt{suffix}", content)
    assert read({"path": path}) == [content[1:]]
    lines = ["", "one", "two", "", "  ", "three\u2028four", "", "", "", "five"]
    assert read({"path": path, "documents": "line"}) == lines
    assert read({"path": path, "documents": "blank_line"}) == ["one\r\ntwo", "three\u2028four", "five"]
    assert read({"path": write("b.txt", "a\nb\n\n"), "documents": "blank_line"}) == ["a\nb"]
    assert read({"path": write("c.txt", "a\nb\n"), "documents": "line"}) == ["a", "b"]
    assert read({"path": write("d.log", "a\nb\n"), "format": "text", "documents": "line"}) == ["a", "b"]
    assert read({"path": write("e.txt", "1\tx\n2\ty\n"), "columns": ("n", "text")}) == ["x", "y"]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", ["file", "line", "blank_line"])
def test_pieces_of_long_documents_are_the_documents(write, monkeypatch, mode, seed):
    """Texts at random of words, spaces and line ends, in pieces of eight characters."""
    rng = np.random.default_rng(seed)
    text = "".join(rng.choice(["a", "bc", " ", "\n", "\n\n", "x" * 9], p=[0.3, 0.3, 0.15, 0.1, 0.1, 0.05], size=60))
    source = {"path": write("a.txt", text), "documents": mode}
    whole = read(source)
    if mode == "blank_line":
        lines = [
            list(group) for blank, group in itertools.groupby(text.split("\n"), lambda s: not s.strip()) if not blank
        ]
        assert whole == ["\n".join(group) for group in lines]
    else:
        assert whole == ([text] if mode == "file" else text.removesuffix("\n").split("\n"))
    monkeypatch.setattr(plain_text, "PIECE", 8)
    pieces = list(reader(source).read())
    assert texts_of(pieces) == whole
    assert max(len(piece.text) for piece in pieces) <= 24
    assert len(pieces) > len(whole)


def test_pieces_are_cut_at_line_ends_or_else_before_spaces(write, monkeypatch):
    monkeypatch.setattr(plain_text, "PIECE", 10)
    pieces = [
        piece.text for piece in reader({"path": write("a.txt", "one two\nthree four five\nsix seven eight")}).read()
    ]
    assert pieces == ["one two\n", "three four", " five\n", "six seven", " eight"]


def test_patterns_and_lists(write, tmp_path, monkeypatch):
    for name in ("b/2.txt", "a/1.txt", "a/deep/er/3.txt.gz", "a/4.jsonl", "c[1].txt"):
        write(name, json.dumps({"text": name}) if "jsonl" in name else name)
    monkeypatch.chdir(tmp_path)
    assert read({"path": "a/*.txt"}) == ["a/1.txt"]
    assert read({"path": "**/*.txt*"}) == ["a/1.txt", "a/deep/er/3.txt.gz", "b/2.txt", "c[1].txt"]
    assert read({"path": ["b/*.txt", "a/*", "**/*.txt"]}) == ["b/2.txt", "a/1.txt", "a/4.jsonl", "c[1].txt"]
    assert read({"path": "c[1].txt"}) == ["c[1].txt"]  # a name that looks like a pattern
    assert read({"path": "**/*.txt*", "limit": 3}) == ["a/1.txt", "a/deep/er/3.txt.gz", "b/2.txt"]
    with pytest.raises(UserError, match=r"no file matches a/\*\.csv; the folder a holds 1\.txt, 4\.jsonl, deep \(rel"):
        read({"path": "a/*.csv"})
    with pytest.raises(UserError, match=r"no file matches z/\*\.csv; there is no folder z"):
        read({"path": "z/*.csv"})
    with pytest.raises(UserError, match=r"no file a/1\.tx; did you mean 'a/1\.txt'\?"):
        read({"path": ["b/*.txt", "a/1.tx"]})
    with pytest.raises(UserError, match="a is a folder"):
        read({"path": "a"})


def test_rows_in_the_config_and_built_in_sources(prepared):
    rows = [{"text": "a"}, {"text": "b"}]
    assert read({"rows": rows}) == ["a", "b"]
    with few_docstrings():
        found = read({"builtin": "stdlib_docstrings", "split": "test", "limit": 20})
        assert found == [row["text"] for row in stdlib_docstrings.load_docstrings("test").rows[:20]]
    source = {"tfds": "reviews_for_test", "data_dir": str(prepared / "array_record")}
    assert sorted(read(source)) == sorted(f"é{i}" for i in range(30))
    assert len(read(source | {"split": "test"})) == 5
    with pytest.raises(UserError, match="tfds reviews_for_test:train: no column 'txt', which task.text asks for"):
        read(source, column="txt")


SOURCES = {
    "text": lambda write: {"path": [write("a.txt", "aaa bbb\nccc ddd eee\n" * 9), write("b.txt", "z\n")]},
    "lines": lambda write: {"path": write("a.txt.gz", "aaa\n\nccc ddd eee fff\n" * 5), "documents": "line"},
    "paragraphs": lambda write: {"path": write("a.txt", "aaa\nbbb\n\nccc ddd eee\n" * 5), "documents": "blank_line"},
    "files": lambda write: {"path": [write(f"{k}.jsonl", rows_as("jsonl", TEXTS)) for k in "abc"], "limit": 9},
    "bad rows": lambda write: {"path": write("a.jsonl", '{"text": "a"}\noops\n{"text": "b"}\n[]\n{"text": "c"}\n')},
    "parquet": lambda write: {"path": write("a.parquet", rows_as("parquet", TEXTS * 3))},
    "rows": lambda write: {"rows": [{"text": text} for text in TEXTS]},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_reading_goes_on_from_any_place(write, monkeypatch, kind):
    monkeypatch.setattr(plain_text, "PIECE", 8)
    source = reader(SOURCES[kind](write), on_bad_row="skip")
    pieces = list(source.read())
    assert len(pieces) > 3
    for i, piece in enumerate(pieces):
        assert list(source.read(piece.after)) == pieces[i + 1 :]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("oops", "not valid JSON: Expecting value, column 1"),
        ('{"other": "x"}', "expected text in column 'text', found no such column"),
        ('{"text": ["x", 3]}', "expected text in column 'text', found list"),
        ('{"text": "\\ud83d"}', "without the other half of its surrogate pair"),
    ],
)
def test_bad_rows_stop_or_are_passed_on_as_problems(write, row, problem):
    path = write("a.jsonl", f'{{"text": "a"}}\n\n{row}\n{{"text": "b"}}\n')
    with pytest.raises(UserError) as error:
        read({"path": path})
    assert problem in str(error.value)
    assert f"{path}, row 2 (line 3): " in str(error.value)
    assert "data.on_bad_row=skip" in str(error.value)
    pieces = list(reader({"path": path}, on_bad_row="skip").read())
    assert texts_of(pieces) == ["a", "b"]
    (found,) = [piece.problem for piece in pieces if piece.problem]
    assert found.startswith(f"{path}, row 2 (line 3): ") and problem in found


def test_a_text_that_is_null_is_empty(write):
    assert read({"path": write("a.jsonl", '{"text": null}\n{"text": "b"}\n')}) == ["", "b"]
    assert read({"path": write("a.parquet", rows_as("parquet", [None, "b"]))}) == ["", "b"]
    problem = "row 1: half a surrogate pair"
    with pytest.raises(UserError, match=problem):
        read({"rows": [{"text": "\ud83d"}]})


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_an_absent_column_is_fatal_and_the_nearest_is_named(write, kind):
    path = write(f"a.{kind}", rows_as(kind, TEXTS))
    with pytest.raises(UserError, match=r"no column 'txt', which task\.text asks for.*'text'.*did you mean 'text'\?"):
        read({"path": path}, on_bad_row="skip", column="txt")


@pytest.mark.parametrize("mode", ["file", "line"])
def test_what_is_no_utf8_is_named_with_its_offset(write, mode):
    content = b"a\n" * 40_000 + "é".encode() + b"\xff\n"
    for name in ("a.txt", "a.txt.gz", "a.txt.zst"):
        with pytest.raises(UserError, match=r"byte 0xff at byte offset 80002 \(line 40001\) .*data\.train\.encoding"):
            read({"path": write(name, content), "documents": mode})
    assert read({"path": write("b.txt", "é".encode("latin-1")), "encoding": "latin-1"}) == ["é"]


def test_lines_that_are_not_utf8_are_skipped_and_other_plain_text_is_refused(write, monkeypatch):
    path = write("a.txt", b"a\ncaf\xe9\nb\n")
    pieces = list(reader({"path": path, "documents": "line"}, on_bad_row="skip").read())
    assert texts_of(pieces) == ["a", "b"]
    assert [piece.problem for piece in pieces if piece.problem] == [
        f"{path}, line 2: not UTF-8: byte 0xe9 cannot be decoded; convert the file to UTF-8"
    ]
    for mode in ("file", "blank_line"):
        with pytest.raises(UserError, match="byte 0xe9 at byte offset 5"):
            read({"path": path, "documents": mode}, on_bad_row="skip")
    monkeypatch.setattr(plain_text, "PIECE", 3)  # a part of the line has been passed on
    with pytest.raises(UserError, match="line 2: not UTF-8: .*so long a line cannot be skipped"):
        read({"path": path, "documents": "line"}, on_bad_row="skip")


def test_broken_archives_are_named(tmp_path):
    content = np.random.default_rng(0).bytes(100_000).hex().encode()
    whole = {"gz": gzip.compress(content, mtime=0), "zst": pyarrow.compress(content, codec="zstd", asbytes=True)}
    for suffix, archive in whole.items():
        for cut in (archive[: len(archive) // 2], b"nonsense, and no archive"):
            path = tmp_path / f"a.txt.{suffix}"
            path.write_bytes(cut)
            with pytest.raises(UserError, match=rf"a\.txt\.{suffix}: not a whole (gzip|zstd) file .*again"):
                read({"path": str(path)})
        path.write_bytes(archive + archive)  # as `cat` puts archives together
        assert read({"path": str(path)}) == [(content + content).decode()]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"path": "a.bin"}, r"does not tell the format; set data\.train\.format to text, jsonl, csv, tsv or parquet"),
        ({"path": "a.txt", "split": "train"}, r"data\.train\.split: only TFDS and built-in sources have splits"),
        ({"path": "a.txt", "data_dir": "x"}, r"data\.train\.data_dir: only for a TFDS source"),
        ({"path": "a.jsonl", "columns": ("text",)}, r"data\.train\.columns: only for csv, tsv and conll files"),
        ({"path": "a.jsonl", "quoting": False}, r"data\.train\.quoting: only csv and tsv files have quotes"),
        ({"rows": [{"text": "a"}], "encoding": "latin-1"}, r"data\.train\.encoding: only for files of text"),
        ({"path": "a.jsonl", "weight": 2.0}, r"data\.train\.weight: only for a source of a mixture"),
        ({"path": "a.jsonl", "documents": "line"}, r"documents: only for plain text; in jsonl every row is a document"),
        ({"mixture": [{"path": "a.txt"}]}, "read its sources one by one"),
        ({"builtin": "installed_docstrings", "split": "test"}, "no split 'test'; its splits are: train, validation"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(tmp_path, monkeypatch, source, message):
    monkeypatch.chdir(tmp_path)
    for name in ("a.bin", "a.txt", "a.jsonl"):
        Path(name).write_text('{"text": "x"}\n')
    with pytest.raises(UserError, match=message):
        read(source)


def test_fraction_grows_to_one(write):
    for name in ("a.txt", "a.txt.gz", "a.jsonl.zst", "a.parquet"):
        texts = [f"{i} " + "x" * 300 for i in range(3000)]
        content = "\n\n".join(texts) if ".txt" in name else rows_as("jsonl" if "jsonl" in name else "parquet", texts)
        source = reader({"path": [write(name, content), write("z.txt", "x" * 1000)]})
        seen = [source.fraction() for _ in source.read()]
        assert seen == sorted(seen)
        assert seen[0] < 1
        assert seen[-1] == pytest.approx(1, abs=0.01)


def test_identity_follows_content_and_settings(write):
    def identity(source, **kwargs):
        return reader(source, **kwargs).identity(Contents())

    path = write("a.jsonl", rows_as("jsonl", TEXTS))
    base = identity({"path": path})
    assert identity({"path": write("elsewhere/b.jsonl", rows_as("jsonl", TEXTS))}) == base  # names do not count
    others = [
        identity({"path": write("c.jsonl", rows_as("jsonl", TEXTS[:3]))}),
        identity({"path": path, "limit": 3}),
        identity({"path": path}, column="n"),
        identity({"path": path}, on_bad_row="skip"),
        identity({"path": [path, write("d.jsonl", "{}")]}),
        identity({"path": path, "format": "text"}),
        identity({"rows": [{"text": "a"}]}),
        identity({"rows": [{"text": "b"}]}),
    ]
    assert len({json.dumps(each) for each in [base, *others]}) == 9
    assert identity({"path": path, "rename": {"text": "body"}}, column="body") == base


def test_digests_of_files_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path, memory = tmp_path / "a", tmp_path / "memory.json"
    path.write_text("one")
    contents = Contents(memory)
    first = contents.digest(path)
    contents.save()
    assert not read_sealed(memory)  # it was changed just now, and may be again within the clock's tick
    monkeypatch.setattr("jaxlm.data.corpus.file_digests._RECENT", -1.0)
    contents.digest(path)
    contents.save()
    hashed = []
    monkeypatch.setattr("hashlib.file_digest", lambda *args: hashed.append(args) or pytest.fail("hashed again"))
    assert Contents(memory).digest(path) == first
    monkeypatch.undo()
    path.write_text("two")
    assert Contents(memory).digest(path) != first
    with pytest.raises(UserError, match="gone: cannot be read: No such file"):
        Contents(memory).digest(tmp_path / "gone")
    memory.write_text("broken")
    assert Contents(memory).digest(path) == Contents().digest(path)


def test_cleaning_pieces_is_cleaning_the_whole(monkeypatch, write):
    """Random texts, cut as plain text is cut, with white space of all kinds around the cuts."""
    monkeypatch.setattr(plain_text, "PIECE", 8)
    every = CleanConfig(unicode="NFC", control_characters=True, whitespace=True)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        words = rng.choice(["ab", " e\u0301 ", "\u200b", " ", "\n", " \n\n ", "\t", "x" * 12, "\x07"], size=50)
        text = "".join(words.tolist())
        for clean in (every, CleanConfig(whitespace=True), CleanConfig(control_characters=True), CleanConfig()):
            cleaner = DocumentCleaner(clean)
            pieces = [piece.text for piece in reader({"path": write("a.txt", text)}).read()]
            for _ in range(2):  # the second document knows nothing of the first
                cleaned = [cleaner.piece(piece, starts=not i) for i, piece in enumerate(pieces)]
                assert "".join(cleaned) == clean_text(text, clean)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["file", "line", "blank_line", "one line", "jsonl", "parquet", "gz"])
def test_reading_takes_bounded_memory(tmp_path, mode):
    """200 MB of each."""
    line = b'{"text": "' + b"word " * 200 + b'"}\n'
    path = tmp_path / {"jsonl": "a.jsonl", "parquet": "a.parquet", "gz": "a.txt.gz"}.get(mode, "a.txt")
    if mode == "parquet":
        schema = pyarrow.schema([("text", pyarrow.string())])
        with pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=False) as writer:
            for _ in range(20):
                texts = [str(i) + "word " * 200 for i in range(10_000)]
                writer.write_table(pyarrow.table({"text": texts}), row_group_size=10_000)
    else:
        with gzip.open(path, "wb", compresslevel=1) if mode == "gz" else path.open("wb") as file:
            for _ in range(200):
                file.write(line.replace(b"\n", b" ") * 1000 if mode == "one line" else line * 1000)
    source = {"path": str(path)} | ({"documents": mode} if mode in ("line", "blank_line") else {})
    code = """
import json, sys
sys.path.insert(0, sys.argv[2])
from helpers.memory import resident_peak
from jaxlm.data.config import SourceConfig
from jaxlm.data.corpus.documents import Documents
documents = Documents(SourceConfig(**json.loads(sys.argv[1])), key="data.train", split="train")
before = resident_peak()
size = sum(len(piece.text) for piece in documents.read())
print(size, resident_peak() - before)
"""
    command = [sys.executable, "-c", code, json.dumps(source), str(TESTS)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    size, megabytes = map(int, out.split())
    assert size > 190e6
    assert megabytes < 100
