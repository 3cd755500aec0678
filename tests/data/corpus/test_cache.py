"""The token cache: what it holds, and when it is found again."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer
from helpers.token_caches import documents_of, open_all, text_files, texts_of, train_opener

from jaxlm.data.corpus import cache, plain_text, text_batches
from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer

BOS, EOS = 256, 257

write, open_train = pytest.fixture(text_files), pytest.fixture(train_opener)


def test_every_document_is_wrapped_once(write, open_train, monkeypatch):
    text = "one two\nthree é four five\nsix\n" * 3
    path = write("a.txt", text)
    whole = open_train({"path": path})
    assert documents_of(whole) == [[BOS, *text.encode(), EOS]]
    assert whole.num_bytes == len(text.encode())
    assert whole.tokens.dtype == np.uint16
    monkeypatch.setattr(plain_text, "PIECE", 8)
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
    monkeypatch.setattr(cache, "build_tokens", lambda *args: pytest.fail("tokenized again"))
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
    monkeypatch.setattr(plain_text, "PIECE", 8)
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
