"""Training WordPiece: what is learned, and what is refused."""

from __future__ import annotations

import pytest
from helpers.tokenizer_folders import ids

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.tokenizer.training import train_wordpiece


def test_train_wordpiece(shared_data, tmp_path):
    texts = (shared_data / "classification/sst2/validation.tsv").read_text("utf-8").lower().split("\n")
    t = train_wordpiece(iter(texts), vocab_size=800)
    assert t.tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (0, 1, 2, 3, 4)
    assert t.vocab_size == 800
    assert t.tokens(ids(t, "The Movie!", "bad")) == ["[CLS]", "the", "movie", "!", "[SEP]", "bad", "[SEP]"]
    assert t.decode(ids(t, "an unforgettable story")) == "an unforgettable story"
    assert "##" in "".join(t.tokens(ids(t, "unforgettable")))
    t.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == t.fingerprint
    (tmp_path / "tokenizer.json").unlink()  # vocab.txt alone says the same
    assert ids(load_tokenizer(tmp_path), "An Unforgettable Story", max_length=9) == ids(
        t, "An Unforgettable Story", max_length=9
    )


def test_train_wordpiece_options():
    texts = [
        "Apple apple APPLE banana",
        "Banana cherry 漢",
        "X" * 70 + " " + "".join(map(chr, range(0x4E00, 0x4E00 + 99))),
    ]
    cased = train_wordpiece(texts, vocab_size=100, lowercase=False)
    assert cased.tokens(ids(cased, "Apple", special_tokens=False)) != ["apple"]
    once = train_wordpiece(texts, vocab_size=100, min_frequency=1)
    twice = train_wordpiece(texts, vocab_size=100)
    assert twice.tokens(ids(twice, "Apple banana", special_tokens=False)) == ["apple", "banana"]
    assert len(ids(twice, "cherry")) > len(ids(once, "cherry")) == 3
    # Half of the vocabulary is kept from rare characters, whose words are unknown.
    assert twice.vocab_size <= 100 and ids(twice, chr(0x4E00 + 98), special_tokens=False) == [twice.unk_id]


def test_train_wordpiece_refuses():
    with pytest.raises(UserError, match="no word in the texts"):
        train_wordpiece(["", "  \n"], vocab_size=100)
    with pytest.raises(UserError, match="vocab_size: 9 is too small"):
        train_wordpiece(["a b c"], vocab_size=9)
