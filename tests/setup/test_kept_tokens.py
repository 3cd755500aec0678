"""Runs on many rows read the tokens that an earlier run kept, and learn from the same examples."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from jaxlm.config.schema import Config
from jaxlm.data.examples.token_store import TokenStore
from jaxlm.setup import setup as module
from jaxlm.setup.setup import make_setup
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.training import train_tokenizer

TEXTS = ["the cat sat on the mat", "unbelievable, isn't it?", "a", "one two three four five six seven eight nine"]
KINDS = {
    "classification": ({"text": ["a", "b"]}, lambda i, t: {"a": t, "b": TEXTS[i - 1], "label": i % 2}),
    "multiple_choice": ({"text": "a"}, lambda i, t: {"a": t, "choices": [t, TEXTS[i - 1]], "label": 0}),
    "embedding": ({"text": ["a", "b"]}, lambda i, t: {"a": t, "b": TEXTS[i - 1]}),
    "tagging": ({}, lambda i, t: {"tokens": t.split(), "tags": ["B-X", *["O"] * (len(t.split()) - 1)]}),
    "question_answering": (
        {},
        lambda i, t: {"question": "what?", "context": t, "answers": {"text": [t[:3]], "answer_start": [0]}},
    ),
    "summarization": ({"source": "a", "target": "b"}, lambda i, t: {"a": t, "b": TEXTS[i - 1]}),
}


@pytest.fixture
def tokenizer(tmp_path):
    """A folder."""
    train_tokenizer(TEXTS * 9, TokenizerTrainingConfig(vocab_size=90)).save(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.mark.parametrize("kind", KINDS)
def test_examples_are_those_of_texts_tokenized_again(kind, tokenizer, shared_data, tmp_path, monkeypatch):
    task, row = KINDS[kind]
    rows = [row(i, text) for i, text in enumerate(TEXTS)] * 3
    model = {"family": "bert", "preset": "tiny", "tokenizer": tokenizer}
    if kind == "summarization":
        model = {"family": "t5", "preset": "small", "tokenizer": str(shared_data / "tokenizers" / "t5-base")}
    config = {
        "name": "kept",
        "model": model,
        "task": {"kind": kind, **task},
        "data": {"train": {"rows": rows}, "max_length": 32},
        "train": {"steps": 1, "batch_size": 4},
        "logging": {"directory": str(tmp_path / "runs")},
    }  # fmt: skip

    def examples(**data):
        changed = {**config, "data": {**config["data"], **data}}
        return make_setup(Config.model_validate(changed), splits=("train",)).datasets["train"].examples()

    plain = examples()
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(module, "TokenStore", functools.partial(TokenStore, least=2))
    first = examples(token_cache=str(tmp_path / "kept"))
    assert list((tmp_path / "kept").glob("*/tokens.bin"))
    for name in ("token_ids", "encode_parts", "encode_with_offsets"):
        monkeypatch.setattr(Tokenizer, name, lambda *_: pytest.fail("tokenized again"))
    again = examples(token_cache=str(tmp_path / "kept"))
    for split in (first, again):
        assert len(split.examples) == len(plain.examples) and split.counts == plain.counts
        for one, other in zip(plain.examples, split.examples, strict=True):
            assert one.row == other.row and one.arrays.keys() == other.arrays.keys()
            for name, array in one.arrays.items():
                np.testing.assert_array_equal(other.arrays[name], array)
                assert other.arrays[name].dtype == array.dtype
            assert repr(other.host) == repr(one.host)


def test_edited_copies_are_not_kept(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TokenStore", functools.partial(TokenStore, least=2))
    config = {
        "name": "copies",
        "model": {"family": "bert", "preset": "tiny", "tokenizer": tokenizer},
        "task": {"text": "a"},
        "data": {
            "train": {"rows": [{"a": t, "label": i % 2} for i, t in enumerate(TEXTS)]},
            "augment": {"delete": 0.2},
        },
        "train": {"steps": 1},
        "logging": {"directory": str(tmp_path / "runs")},
    }
    make_setup(Config.model_validate(config), splits=("train",))
    assert not (tmp_path / "runs").exists()
