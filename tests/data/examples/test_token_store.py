"""Tokens of labelled rows that are kept: found by content, equal to those that are made, made anew where damaged."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.examples.token_store import TokenStore
from jaxlm.tokenizer.tokenizer import load_tokenizer

TEXTS = ["one", "", "zwei é", "one", "a longer text than the others are"] * 3


@pytest.fixture
def store(tmp_path):
    return TokenStore(tmp_path / "cache", least=len(TEXTS))


def offsets(tokenizer, texts, calls):
    for text in texts:
        calls.append(text)
        yield tokenizer.encode_with_offsets(text)


def test_kept_tokens_are_those_of_the_tokenizer(shared_data, store, monkeypatch):
    tokenizer = load_tokenizer(shared_data / "tokenizers" / "bert-base-uncased")
    made = [ids.tolist() for ids in tokenizer.token_ids(TEXTS)]
    first = list(store.ids(tokenizer, TEXTS))
    with monkeypatch.context() as patch:
        patch.setattr(type(tokenizer), "token_ids", lambda *_: pytest.fail("tokenized again"))
        again = list(store.ids(tokenizer, list(TEXTS)))
    assert [ids.tolist() for ids in first] == [ids.tolist() for ids in again] == made
    assert {ids.dtype for ids in again} == {np.dtype(np.int32)}
    plain = tokenizer.encode(TEXTS, max_length=8, stride=2)
    kept = tokenizer.encode(TEXTS, max_length=8, stride=2, ids=lambda texts: store.ids(tokenizer, texts))
    for some, others in zip(plain, kept, strict=True):
        for one, other in zip(some, others, strict=True):
            assert one.ids.tolist() == other.ids.tolist() and one.type_ids.tolist() == other.type_ids.tolist()
            assert one.truncated == other.truncated and other.ids.dtype == np.int32


def test_other_texts_another_tokenizer_and_another_kind_are_made_anew(store):
    calls: list[str] = []
    tokenizer = byte_tokenizer()

    def read(texts, tokenizer=tokenizer, what="offsets"):
        calls.clear()
        list(store.read(tokenizer, texts, what, lambda: offsets(tokenizer, texts, calls)))
        return len(calls)

    assert read(TEXTS) == len(TEXTS) and read(TEXTS) == 0
    assert read([*TEXTS[:-1], "changed"]) == len(TEXTS) and read(TEXTS[::-1]) == len(TEXTS)
    assert read(TEXTS, tokenizer=byte_tokenizer(spare=3)) == len(TEXTS)
    assert read(TEXTS, what="words") == len(TEXTS)
    assert read(TEXTS) == 0


def test_few_texts_leave_nothing_behind(store, tmp_path):
    tokenizer = byte_tokenizer()
    assert [ids.tolist() for ids in store.ids(tokenizer, ["ab"])] == [[97, 98]]
    assert not (tmp_path / "cache").exists()


def test_several_arrays_come_back_with_their_shapes(store):
    tokenizer, calls = byte_tokenizer(), []
    made = [tokenizer.encode_with_offsets(text) for text in TEXTS]
    for _ in range(2):
        kept = store.read(tokenizer, TEXTS, "offsets", lambda: offsets(tokenizer, TEXTS, calls))
        for (ids, places), (kept_ids, kept_places) in zip(made, kept, strict=True):
            assert kept_ids.tolist() == ids.tolist() and kept_ids.dtype == ids.dtype
            assert kept_places.tolist() == places.tolist() and kept_places.shape == places.shape
    assert len(calls) == len(TEXTS)


def test_damage_is_named_and_mended(store, caplog):
    tokenizer = byte_tokenizer()
    before = [ids.tolist() for ids in store.ids(tokenizer, TEXTS)]
    [file] = store.folder.glob("*/tokens.bin")
    file.write_bytes(file.read_bytes()[:-4])
    with caplog.at_level(logging.WARNING, "jaxlm"):
        assert [ids.tolist() for ids in store.ids(tokenizer, TEXTS)] == before
    assert "damaged: tokens.bin has" in caplog.text
    caplog.clear()
    assert [ids.tolist() for ids in store.ids(tokenizer, TEXTS)] == before and not caplog.text


def test_what_cannot_be_written_costs_a_warning(store, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file where the folder would be")
    tokenizer = byte_tokenizer()
    with caplog.at_level(logging.WARNING, "jaxlm"):
        kept = [ids.tolist() for ids in store.ids(tokenizer, TEXTS)]
    assert kept == [list(text.encode()) for text in TEXTS]
    assert "data.token_cache" in caplog.text and "tokenizes again" in caplog.text


def test_what_a_killed_writer_left_goes_with_the_next_one(store):
    code = """
import os, signal, sys
from pathlib import Path
from helpers.corpora import byte_tokenizer
from jaxlm.data.examples.token_store import TokenStore
texts = sys.argv[2:]
store = TokenStore(Path(sys.argv[1]), least=1)
store.read(byte_tokenizer(), texts, "ids", lambda: iter(lambda: os.kill(os.getpid(), signal.SIGKILL), None))
"""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(store.folder), *TEXTS]
    assert subprocess.run(command, env=environ).returncode == -signal.SIGKILL
    assert len(list(store.folder.glob(".*.partial"))) == 1
    list(store.ids(byte_tokenizer(), TEXTS))
    assert not list(store.folder.glob(".*.partial")) and len(list(store.folder.glob("*/index.json"))) == 1


def test_a_failed_build_leaves_no_part(store):
    def broken():
        yield (np.arange(3, dtype=np.int32),)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.read(byte_tokenizer(), TEXTS, "ids", broken)
    assert [path.name for path in store.folder.iterdir() if not path.name.startswith(".")] == []
    shutil.rmtree(store.folder)
