"""Token caches that are killed, full, damaged or built twice at once: the end is as in one go."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from helpers.paths import REPOSITORY, TESTS
from helpers.token_caches import open_all, text_files, texts_of, train_opener

from jaxlm.data.corpus import cache, stored, text_batches, writer
from jaxlm.errors import Interrupted, RunFailure
from jaxlm.files import read_sealed, write_sealed

write, open_train = pytest.fixture(text_files), pytest.fixture(train_opener)

KILLED = """
import io, json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.corpora import byte_tokenizer
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import plain_text, text_batches, writer
from jaxlm.data.corpus.build import Tokenizing
from jaxlm.data.corpus.cache import open_corpora

root = Path(sys.argv[1])
os.fsync = lambda number: None  # which takes time, and matters for power cuts only
plain_text.PIECE, text_batches._BATCH_TEXTS, writer._JOURNAL_BYTES = 8, 3, 60
writer._JOURNAL_SECONDS = 1e9
config = DataConfig.model_validate(json.loads((root / "config.json").read_text()))
tokenizer = byte_tokenizer()


def build(cache):
    how = Tokenizing("text", tokenizer, "documents", cache)
    opened = open_corpora(config, ("train", "validation"), how)
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

    write, fsync, rename, unlink = writer._write, os.fsync, Path.rename, Path.unlink
    writer._write = lambda file, data: (step(lambda: write(file, data[: len(data) // 2])), write(file, data))
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
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(TESTS)]
    root = str(REPOSITORY)
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
    monkeypatch.setattr(writer, "_JOURNAL_BYTES", 10)
    path = write("a.jsonl", [f"text {i}" for i in range(20)])
    expected = open_train({"path": path}, cache=tmp_path / "other")
    write_file, left = writer._write, 12

    def full(file, content):
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        write_file(file, content)

    monkeypatch.setattr(writer, "_write", full)
    with pytest.raises(RunFailure, match=r"\.building: cannot be written \([\d,]+ bytes free there\).*No space left"):
        open_train({"path": path})
    monkeypatch.setattr(writer, "_write", write_file)
    started = []
    batches = text_batches.text_batches
    monkeypatch.setattr(
        "jaxlm.data.corpus.build.text_batches", lambda *args: started.append(args[2:]) or batches(*args)
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
    monkeypatch.setattr(writer, "_JOURNAL_BYTES", 10)
    path = write("a.jsonl", [f"text {i}" for i in range(20)])
    expected = open_train({"path": path}, cache=tmp_path / "other")
    finish = writer.TokenWriter.finish
    monkeypatch.setattr(writer.TokenWriter, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_train({"path": path})
    monkeypatch.setattr(writer.TokenWriter, "finish", finish)
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


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = {
    "flipped": flip,
    "cut": lambda path: os.truncate(path, path.stat().st_size - 8),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"12345678"),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "digests.bin", "index.json"])
def test_a_damaged_cache_is_named_and_built_anew(write, open_train, caplog, name):
    path = write("a.jsonl", [f"one {i}" for i in range(20)])
    sound = open_train({"path": path})
    folder, expected = sound.directory, sound.tokens.tolist()
    for damage in DAMAGES.values():
        caplog.clear()
        damage(folder / name)
        corpus = open_train({"path": path})
        assert corpus.tokens.tolist() == expected and corpus.num_documents == 20
        [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert f"{folder}: damaged: {name} " in warning
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_was_verified_is_not_read_again(write, open_train, monkeypatch):
    path = write("a.jsonl", ["one", "two"])
    folder = open_train({"path": path}).directory
    monkeypatch.setattr("jaxlm.data.corpus.file_digests._RECENT_HERE", -1.0)
    monkeypatch.setattr("jaxlm.data.corpus.file_digests._RECENT", -1.0)
    open_train({"path": path})
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *args: pytest.fail("read again"))
        open_train({"path": path})
    stamp = (folder / "tokens.bin").stat()
    flip(folder / "tokens.bin")
    os.utime(folder / "tokens.bin", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the time of its change stays
    assert open_train({"path": path}).read(1, 4).tolist() == list(b"one")


def test_ids_beyond_the_vocabulary_are_not_read(write, open_train, monkeypatch, caplog):
    path = write("a.jsonl", ["one", "two"])
    folder = open_train({"path": path}).directory
    facts = read_sealed(folder / "index.json")
    write_sealed(folder / "index.json", {**facts, "max_id": 5000})
    open_train({"path": path})
    assert "token 5000 in a vocabulary of" in caplog.text


def test_two_runs_build_one_corpus(write, open_train, monkeypatch, caplog):
    path = write("a.jsonl", ["one", "two"])
    monkeypatch.setattr(stored, "_POLL", 0.02)
    build, builds = cache.build_tokens, []

    def slowly(*args):
        builds.append(args)
        time.sleep(0.3)
        build(*args)

    monkeypatch.setattr(cache, "build_tokens", slowly)
    found = []
    with caplog.at_level(logging.INFO, logger="jaxlm"):
        threads = [threading.Thread(target=lambda: found.append(open_train({"path": path}))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(builds) == 1
    assert [corpus.tokens.tolist() for corpus in found] == [found[0].tokens.tolist()] * 2
    assert "another process is tokenizing it; waiting" in caplog.text


def test_an_unwritable_cache_is_a_failure(write, open_train, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailure, match="file/cache: cannot be written"):
        open_train({"path": write("a.jsonl", ["one"])}, cache=tmp_path / "file" / "cache")


@pytest.mark.slow
@pytest.mark.parametrize(("source", "most"), [({}, 80), ({"documents": "line"}, 220)])
def test_building_takes_bounded_memory(tmp_path, source, most):
    """40 MB of text, de-duplicated, of which every byte is a token; in batches of a fraction of that.

    Of lines, what the tokenizer makes of a thousand is held at once: some 160 MB for 10 MB of text as for 120 MB.
    """
    words = np.random.default_rng(0).integers(97, 123, (1000, 199), np.uint8)
    with (tmp_path / "a.txt").open("wb") as file:
        for i in range(200):
            words[:, :8] = list(f"{i:08d}".encode())
            file.write(np.pad(words, ((0, 0), (0, 1)), constant_values=10).tobytes())
    code = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from helpers.corpora import byte_tokenizer
from helpers.memory import resident_peak
from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import text_batches
from jaxlm.data.corpus.build import Tokenizing
from jaxlm.data.corpus.cache import open_corpora
text_batches._BATCH_CHARACTERS = 1 << 18
config = DataConfig.model_validate({"train": json.loads(sys.argv[1]), "clean": {"deduplicate": True}})
before = resident_peak()
how = Tokenizing("text", byte_tokenizer(), "none", Path(sys.argv[2]))
((corpus, _),) = open_corpora(config, ("train",), how)["train"]
print(corpus.num_bytes, resident_peak() - before)
"""
    source = json.dumps({"path": str(tmp_path / "a.txt")} | source)
    command = [sys.executable, "-c", code, source, str(tmp_path / "cache"), str(TESTS)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    size, megabytes = map(int, out.split())
    assert size > 39e6
    assert megabytes < most
