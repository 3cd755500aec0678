"""The token cache: what it holds, when it is found again, and that a killed build ends as one in one go."""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import byte_tokenizer

from jaxlm.config_data import DataConfig
from jaxlm.data import documents, text_batches, token_cache, token_writer
from jaxlm.data.token_cache import open_corpora, open_corpus
from jaxlm.data.tokenize import load_tokenizer
from jaxlm.errors import Interrupted, RunFailure, UserError

BOS, EOS = 256, 257


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, content: str | bytes | list[str]):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps({"text": text}) + "\n" for text in content)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
        return str(path)

    return to_file


@pytest.fixture
def open_train(tmp_path):
    """Opens `data.train` in one cache, with any of the arguments changed."""

    def opened(source, *, tokenizer=None, cache=tmp_path / "cache", wrap="documents", **data: Any):
        config = DataConfig.model_validate({"train": source, **data})
        assert config.train is not None
        return open_corpus(
            config.train, key="data.train", split="train", text_column="text", tokenizer=tokenizer or byte_tokenizer(),
            data=config, cache=cache, wrap=wrap,
        )  # fmt: skip

    return opened


def open_all(tmp_path, splits=("train", "validation", "test"), stop=lambda: None, **data: Any):
    return open_corpora(
        DataConfig.model_validate(data), splits, text_column="text", tokenizer=byte_tokenizer(),
        cache=tmp_path / "cache", wrap="documents", stop=stop,
    )  # fmt: skip


def documents_of(corpus):
    offsets = corpus.offsets.tolist()
    return [corpus.read(start, stop).tolist() for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


def texts_of(corpus):
    """Without what wraps them."""
    return [bytes(token for token in ids if token < 256).decode() for ids in documents_of(corpus)]


def test_every_document_is_wrapped_once(write, open_train, monkeypatch):
    text = "one two\nthree é four five\nsix\n" * 3
    path = write("a.txt", text)
    whole = open_train({"path": path})
    assert documents_of(whole) == [[BOS, *text.encode(), EOS]]
    assert whole.num_bytes == len(text.encode())
    assert whole.tokens.dtype == np.uint16
    monkeypatch.setattr(documents, "_PIECE", 8)
    pieces = open_train({"path": path})
    assert documents_of(pieces) == documents_of(whole)
    assert pieces.num_bytes == whole.num_bytes
    assert pieces.digests.tolist() == whole.digests.tolist()
    bare = open_train({"path": path}, wrap="none")
    assert documents_of(bare) == [list(text.encode())]
    lines = open_train({"path": path, "documents": "line"})
    assert documents_of(lines) == [[BOS, *line.encode(), EOS] for line in text.split("\n")[:-1]]
    assert len({corpus.fingerprint for corpus in (whole, pieces, bare, lines)}) == 4


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("bert-base-uncased", ["[CLS]"], ["[SEP]"]),
        ("gpt2", [], ["<|endoftext|>"]),
        ("mistral-v1", ["<s>"], ["</s>"]),
        ("t5-base", [], ["</s>"]),
    ],
)
def test_the_wrapping_is_the_tokenizers_own(shared_data, write, open_train, name, before, after):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / name)
    corpus = open_train({"path": write("a.jsonl", ["One two.", "Three"])}, tokenizer=tokenizer)
    bare = tokenizer.encode(["One two.", "Three"], special_tokens=False)
    for ids, pieces in zip(documents_of(corpus), bare, strict=True):
        assert tokenizer.tokens(ids) == [*before, *tokenizer.tokens(pieces[0].ids), *after]


def test_large_vocabularies_take_four_bytes(write, open_train):
    path = write("a.txt", "abc")
    assert open_train({"path": path}, tokenizer=byte_tokenizer(spare=65536 - 258)).tokens.dtype == np.uint16
    assert open_train({"path": path}, tokenizer=byte_tokenizer(spare=65536 - 257)).tokens.dtype == np.uint32


def test_a_real_corpus_comes_back_as_text(shared_data, open_train):
    path = shared_data / "lm/poetry_tang/train.jsonl"
    corpus = open_train({"path": str(path)})
    expected = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert texts_of(corpus) == expected
    assert corpus.num_bytes == sum(len(text.encode()) for text in expected)


def test_the_cache_is_found_by_content_not_by_name(write, open_train, monkeypatch, tmp_path):
    path = write("a.jsonl", ["one", "two"])
    first = open_train({"path": path})
    monkeypatch.setattr(token_cache, "build_tokens", lambda *args: pytest.fail("tokenised again"))
    assert open_train({"path": path}).fingerprint == first.fingerprint
    os.utime(path, (1, 1))
    assert open_train({"path": path}).fingerprint == first.fingerprint
    assert open_train({"path": write("elsewhere/b.jsonl", ["one", "two"])}).directory == first.directory
    monkeypatch.undo()
    changes: list[dict[str, Any]] = [
        {"source": {"path": write("c.jsonl", ["one", "twO"])}},
        {"source": {"path": [path, write("d.jsonl", ["three"])]}},
        {"source": {"path": path, "limit": 1}},
        {"tokenizer": byte_tokenizer(eos=False)},
        {"wrap": "none"},
        {"clean": {"whitespace": True}},
        {"clean": {"deduplicate": True}},
        {"on_bad_row": "skip"},
    ]
    found = {open_train(**{"source": {"path": path}, **change}).fingerprint for change in changes}
    assert len(found | {first.fingerprint}) == len(changes) + 1
    Path(path).write_text('{"text": "other"}\n')
    assert texts_of(open_train({"path": path})) == ["other"]


def test_cleaning_is_counted(write, open_train, caplog):
    rows = ["a\u200b b", "  ", "c  d", "c d", "\ufeff", "a b"]
    path = write("a.jsonl", rows)
    clean = {"control_characters": True, "whitespace": True, "deduplicate": True}
    with caplog.at_level(logging.INFO, logger="jaxlm"):
        corpus = open_train({"path": path}, clean=clean)
    assert texts_of(corpus) == ["a b", "c d"]
    expected = {"control_characters_changed": 2, "whitespace_changed": 2, "empty_documents": 2, "duplicates_dropped": 2}
    assert dict(corpus.counts) == expected
    assert "2 documents, 10 tokens, 6 bytes of text" in caplog.text
    assert "duplicates dropped: 2" in caplog.text
    assert dict(open_train({"path": path}, clean=clean).counts) == expected  # when found again, too
    assert texts_of(open_train({"path": path})) == [row for row in rows if row.strip()]  # all of it is off by default


def test_long_copies_are_taken_back(write, open_train, monkeypatch):
    """A document that was written piece by piece before its end showed that it is a copy."""
    monkeypatch.setattr(documents, "_PIECE", 8)
    monkeypatch.setattr(text_batches, "_BATCH_TEXTS", 3)
    texts = ["one two three four five six seven", "short", "eight nine ten eleven twelve 13"]
    order = [0, 1, 0, 0, 2, 1, 2, 0]
    paths = [write(f"{i}.txt", texts[k]) for i, k in enumerate(order)]
    corpus = open_train({"path": paths}, clean={"deduplicate": True})
    assert texts_of(corpus) == texts
    assert corpus.counts["duplicates_dropped"] == 5
    assert corpus.num_tokens == len(corpus.tokens) == corpus.offsets[-1]


def test_leaks_are_counted_or_dropped(write, tmp_path, caplog):
    sources = {
        "train": {"path": write("train.jsonl", ["a", "b", "c", "d", "b"])},
        "validation": {"path": write("validation.jsonl", ["b", "q"])},
        "test": {"mixture": [{"path": write("t1.jsonl", ["c"])}, {"path": write("t2.jsonl", ["b", "z"])}]},
    }
    warned = open_all(tmp_path, **sources)
    ((corpus, weight),) = warned["train"]
    assert (corpus.counts["leaks_validation"], corpus.counts["leaks_test"], weight) == (2, 3, 1.0)
    assert "2 of 5 training documents of data.train" in caplog.text
    assert [texts_of(part) for part, _ in warned["test"]] == [["c"], ["b", "z"]]
    ((dropped, _),) = open_all(tmp_path, **sources, clean={"leaks": "drop"})["train"]
    assert texts_of(dropped) == ["a", "d"]
    assert dropped.counts["leaks_dropped"] == 3
    ((ignored, _),) = open_all(tmp_path, **sources, clean={"leaks": "ignore"})["train"]
    assert ignored.fingerprint == corpus.fingerprint
    assert "leaks_test" not in ignored.counts
    sources["validation"]["path"] = write("v2.jsonl", ["a"])
    ((again, _),) = open_all(tmp_path, **sources)["train"]
    assert again.counts["leaks_validation"] == 1  # although the training tokens were found in the cache
    assert again.fingerprint == corpus.fingerprint
    ((again, _),) = open_all(tmp_path, **sources, clean={"leaks": "drop"})["train"]
    assert texts_of(again) == ["d"]


def test_train_that_is_validation_has_its_own_warning(write, tmp_path, caplog):
    path = write("a.jsonl", ["a", "b"])
    open_all(tmp_path, train={"path": path}, validation={"path": path})
    assert "every training document of data.train" in caplog.text and "says nothing about unseen text" in caplog.text
    with pytest.raises(UserError, match=r"data\.train \(.*no document is left \(leaks dropped: 2\)"):
        open_all(tmp_path, train={"path": path}, validation={"path": path}, clean={"leaks": "drop"})


def test_a_mixtures_sources_share_their_deduplication_and_keep_their_weights(write, tmp_path):
    parts = [
        {"path": write("a.jsonl", ["a", "b", "a"]), "weight": 3},
        {"path": write("b.jsonl", ["c", "b"]), "weight": 1},
        {"path": write("c.jsonl", ["c", "d"])},
    ]
    opened = open_all(tmp_path, train={"mixture": parts}, clean={"deduplicate": True})["train"]
    assert [(texts_of(corpus), weight) for corpus, weight in opened] == [(["a", "b"], 3.0), (["c"], 1.0), (["d"], 1.0)]
    assert opened[1][0].name.startswith("data.train.mixture[1] (")
    plain = open_all(tmp_path, train={"mixture": parts})["train"]
    assert [texts_of(corpus) for corpus, _ in plain] == [["a", "b", "a"], ["c", "b"], ["c", "d"]]
    assert open_all(tmp_path, splits=("validation",), train={"mixture": parts}) == {}


def test_bad_rows_stop_or_are_counted_at_every_opening(write, open_train, caplog):
    path = write("a.jsonl", '{"text": "a"}\noops\n{"text": "b"}\n[]\n')
    with pytest.raises(UserError, match=r"a\.jsonl, row 2: not valid JSON.*data\.on_bad_row=skip"):
        open_train({"path": path})
    for _ in range(2):
        caplog.clear()
        corpus = open_train({"path": path}, on_bad_row="skip")
        assert texts_of(corpus) == ["a", "b"]
        assert corpus.counts["bad_rows"] == 2
        assert f"2 rows are bad and were skipped; the first: {path}, row 2: not valid JSON" in caplog.text


def test_nothing_left_is_refused(write, open_train):
    for _ in range(2):
        with pytest.raises(
            UserError, match=r"no document is left \(empty documents: 2\); data\.train needs at least one"
        ):
            open_train({"path": write("a.jsonl", ["", " "])})


def test_a_tokenizer_that_does_not_know_the_text_is_named(shared_data, open_train, caplog):
    tokenizer = load_tokenizer(shared_data / "tokenizers/bert-base-uncased")
    open_train({"path": str(shared_data / "lm/gutenberg/validation.txt")}, tokenizer=tokenizer)
    assert "does not know" not in caplog.text
    open_train({"path": str(shared_data / "lm/poetry_tang/validation.jsonl")}, tokenizer=tokenizer)
    assert "the tokenizer does not know" in caplog.text


KILLED = """
import io, json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from corpora import byte_tokenizer
from jaxlm.config_data import DataConfig
from jaxlm.data import documents, text_batches, token_writer
from jaxlm.data.token_cache import open_corpora

root = Path(sys.argv[1])
os.fsync = lambda number: None  # which takes time, and matters for power cuts only
documents._PIECE, text_batches._BATCH_TEXTS, token_writer._JOURNAL_BYTES = 8, 3, 60
token_writer._JOURNAL_SECONDS = 1e9
config = DataConfig.model_validate(json.loads((root / "config.json").read_text()))
tokenizer = byte_tokenizer()


def build(cache):
    opened = open_corpora(config, ("train", "validation"), text_column="text", tokenizer=tokenizer, cache=cache,
                          wrap="documents")
    return opened["train"][0][0].directory


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def killed_at(count, cache):
    # In a child: at its `count`-th step that touches the disk the process is killed, half of a write done.
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        assert os.WIFSIGNALED(status) or status == 0, status
        return os.WIFSIGNALED(status)
    steps = 0

    def step(before=lambda: None):
        nonlocal steps
        steps += 1
        if steps == count:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    write, fsync, rename, unlink = token_writer._write, os.fsync, Path.rename, Path.unlink
    token_writer._write = lambda file, data: (step(lambda: write(file, data[: len(data) // 2])), write(file, data))
    os.fsync = lambda number: (step(), fsync(number))
    Path.rename = lambda path, target: (step(), rename(path, target))[1]
    Path.unlink = lambda path, **kwargs: (step(), unlink(path, **kwargs))
    build(cache)
    os._exit(0)


expected = content(build(root / "whole"))
kills = 0
while True:
    cache = root / "killed"
    shutil.rmtree(cache, ignore_errors=True)
    if not killed_at(kills + 1, cache):
        break
    kills += 1
    if kills % 3 == 0:
        killed_at(kills % 17 + 1, cache)  # and once more, on its way from there
    found = content(build(cache))
    assert found.keys() == expected.keys(), (kills, list(found))
    for name in expected:
        assert found[name] == expected[name], (kills, name, found[name][:300], expected[name][:300])
print(kills, len(expected["offsets.bin"]) // 8 - 1, json.loads(expected["index.json"])["counts"])
"""


def test_a_build_killed_anywhere_ends_as_one_in_one_go(write, tmp_path):
    """SIGKILL at every step that touches the disk, half-done writes included; every eventuality of reading at once."""
    long = "one two three four five six seven eight nine\nten eleven"
    rows = ["a\u200b", "  ", long, "b b", "held out", long, "a", "c" * 50, "b b", long, "held out", "d"]
    paths = [
        write("1.jsonl", "oops\n" + "".join(json.dumps({"text": row}) + "\n" for row in rows)),
        write("2.txt", long * 3),
        write("3.txt.gz", "held out text that is\nlonger than one piece"),
        write("4.txt", long * 3),  # a copy that shows to be one only at its end
        write("5.txt", "the  last\u200b document of them all\n\nand its end"),
        write("6.jsonl", '{"text": "but for a few words"}\noops\n'),
    ]
    held_out = [write("3v.txt", "held out text that is longer than one piece"), write("v.txt", "held out")]
    config = {
        "train": {"path": paths},
        "validation": {"path": held_out},
        "on_bad_row": "skip",
        "clean": {"whitespace": True, "control_characters": True, "deduplicate": True, "leaks": "drop"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    root = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": root}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-8000:]
    kills, kept, counts = done.stdout.split(" ", 2)
    assert int(kills) > 60
    assert int(kept) == 8
    expected = {"bad_rows": 2, "duplicates_dropped": 5, "empty_documents": 1, "leaks_dropped": 3}
    assert expected.items() <= json.loads(counts.replace("'", '"')).items()


def test_a_full_disk_is_a_failure_and_the_build_goes_on_afterwards(write, open_train, monkeypatch, tmp_path):
    monkeypatch.setattr(text_batches, "_BATCH_TEXTS", 2)
    monkeypatch.setattr(token_writer, "_JOURNAL_BYTES", 10)
    path = write("a.jsonl", [f"text {i}" for i in range(20)])
    expected = open_train({"path": path}, cache=tmp_path / "other")
    write_file, left = token_writer._write, 12

    def full(file, content):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        write_file(file, content)

    monkeypatch.setattr(token_writer, "_write", full)
    with pytest.raises(RunFailure, match=r"\.building: cannot be written \([\d,]+ bytes free there\).*No space left"):
        open_train({"path": path})
    monkeypatch.setattr(token_writer, "_write", write_file)
    started = []
    batches = text_batches.text_batches
    monkeypatch.setattr(
        "jaxlm.data.token_builder.text_batches", lambda *args: started.append(args[2:]) or batches(*args)
    )
    corpus = open_train({"path": path})
    assert started[0][0].item > 0  # not from the beginning
    assert corpus.tokens.tolist() == expected.tokens.tolist()


def test_a_signal_saves_what_is_done(write, tmp_path, monkeypatch):
    monkeypatch.setattr(text_batches, "_BATCH_TEXTS", 2)
    source = {"train": {"path": write("a.jsonl", [f"text {i}" for i in range(20)])}}
    signals = iter([None, None, "SIGTERM"])
    with pytest.raises(Interrupted, match=r"SIGTERM: 48 tokens of data\.train .* are saved; the same command goes on"):
        open_all(tmp_path, **source, stop=lambda: next(signals))
    (building,) = (tmp_path / "cache").glob("*.building")
    assert (building / "tokens.bin").stat().st_size == 2 * 48
    ((corpus, _),) = open_all(tmp_path, **source)["train"]
    assert texts_of(corpus) == [f"text {i}" for i in range(20)]


def test_a_journal_is_believed_only_as_far_as_the_files_bear_it_out(write, open_train, monkeypatch, tmp_path):
    monkeypatch.setattr(text_batches, "_BATCH_TEXTS", 2)
    monkeypatch.setattr(token_writer, "_JOURNAL_BYTES", 10)
    path = write("a.jsonl", [f"text {i}" for i in range(20)])
    expected = open_train({"path": path}, cache=tmp_path / "other")
    finish = token_writer.TokenWriter.finish
    monkeypatch.setattr(token_writer.TokenWriter, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_train({"path": path})
    monkeypatch.setattr(token_writer.TokenWriter, "finish", finish)
    (building,) = (tmp_path / "cache").glob("*.building")
    whole = tmp_path / "kept"
    shutil.copytree(building, whole)
    for name, size in {"tokens.bin": 31, "offsets.bin": 20, "digests.bin": 0, "journal.jsonl": 300}.items():
        shutil.rmtree(tmp_path / "cache")
        shutil.copytree(whole, building)
        os.truncate(building / name, size)
        corpus = open_train({"path": path})
        assert corpus.tokens.tolist() == expected.tokens.tolist()
        assert corpus.offsets.tolist() == expected.offsets.tolist()


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "digests.bin", "index.json"])
def test_a_damaged_cache_is_not_read(write, open_train, name):
    path = write("a.jsonl", ["one", "two"])
    folder = open_train({"path": path}).directory
    os.truncate(folder / name, (folder / name).stat().st_size - 8)
    with pytest.raises(RunFailure, match=rf"{folder}.*delete the folder"):
        open_train({"path": path})


def test_two_runs_build_one_corpus(write, open_train, monkeypatch, caplog):
    path = write("a.jsonl", ["one", "two"])
    monkeypatch.setattr(token_cache, "_POLL", 0.02)
    build, builds = token_cache.build_tokens, []

    def slowly(*args):
        builds.append(args)
        time.sleep(0.3)
        build(*args)

    monkeypatch.setattr(token_cache, "build_tokens", slowly)
    found = []
    with caplog.at_level(logging.INFO, logger="jaxlm"):
        threads = [threading.Thread(target=lambda: found.append(open_train({"path": path}))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(builds) == 1
    assert [corpus.tokens.tolist() for corpus in found] == [found[0].tokens.tolist()] * 2
    assert "another process is tokenising it; waiting" in caplog.text


def test_an_unwritable_cache_is_a_failure(write, open_train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailure, match="file/cache: cannot be written"):
        open_train({"path": write("a.jsonl", ["one"])}, cache=tmp_path / "file" / "cache")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads ru_maxrss in KiB")
@pytest.mark.parametrize("source", [{}, {"documents": "line"}])
def test_building_takes_bounded_memory(tmp_path, source):
    """40 MB of text, de-duplicated, of which every byte is a token; in batches of a fraction of that."""
    words = np.random.default_rng(0).integers(97, 123, (1000, 199), np.uint8)
    with (tmp_path / "a.txt").open("wb") as file:
        for i in range(200):
            words[:, :8] = list(f"{i:08d}".encode())
            file.write(np.pad(words, ((0, 0), (0, 1)), constant_values=10).tobytes())
    code = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from corpora import byte_tokenizer
from jaxlm.config_data import DataConfig
from jaxlm.data import text_batches
from jaxlm.data.token_cache import open_corpora
text_batches._BATCH_CHARACTERS = 1 << 18
config = DataConfig.model_validate({"train": json.loads(sys.argv[1]), "clean": {"deduplicate": True}})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
((corpus, _),) = open_corpora(config, ("train",), text_column="text", tokenizer=byte_tokenizer(),
                              cache=Path(sys.argv[2]), wrap="none")["train"]
print(corpus.num_bytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    source = json.dumps({"path": str(tmp_path / "a.txt")} | source)
    command = [sys.executable, "-c", code, source, str(tmp_path / "cache"), str(Path(__file__).parent)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    size, megabytes = map(int, out.split())
    assert size > 39e6
    assert megabytes < 80
