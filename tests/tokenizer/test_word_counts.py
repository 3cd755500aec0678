"""Counting words and sampling texts for a tokenizer: exact, even, and in bounded memory."""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import tokenizers
from helpers.hard_texts import TRICKY
from helpers.memory import peak

from jaxlm.tokenizer import sentencepiece_training, training, word_counts
from jaxlm.tokenizer.config import TokenizerTrainingConfig


def endless(count: int) -> Iterator[str]:
    """Texts of words that are all different, but for one."""
    for i in range(count):
        yield f"the w{i}x the y{i}z"


def test_word_counts_are_exact_and_then_an_even_sample_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(word_counts, "_BATCH", 20_000)
    exact = word_counts.count_words(endless(1000), str.split)
    assert exact["the"] == 2000 and exact["w7x"] == 1 and len(exact) == 2001
    sampled: list[Counter[str]] = []
    megabytes = peak(lambda: sampled.append(word_counts.count_words(endless(30_000), str.split, most=2000)))
    [counts] = sampled
    assert len(counts) <= 2000 and megabytes < 2  # 60,000 different words would take 5.5
    assert counts.total() > 1000 and counts["the"] / counts.total() == pytest.approx(0.5, abs=0.05)  # as in the texts
    halves = (f"{'ab'[i >= 15_000]} x{i}" for i in range(30_000))
    counts = word_counts.count_words(halves, str.split, most=2000)
    assert counts["a"] / counts["b"] == pytest.approx(1, abs=0.3) and counts["a"] > 100  # early or late


def test_training_takes_bounded_memory(monkeypatch):
    """The texts of an endless generator would not fit."""
    monkeypatch.setattr(word_counts, "_BATCH", 20_000)
    monkeypatch.setattr(training, "count_words", functools.partial(word_counts.count_words, most=2000))
    for kind, most in (("wordpiece", 2), ("byte_bpe", 1), ("char", 0.1)):  # unbounded: 3.3, 1.6, 0.2
        options = TokenizerTrainingConfig(type=kind, vocab_size=500)
        assert peak(lambda options=options: training.train_tokenizer(endless(10_000), options)) < most
    options = TokenizerTrainingConfig(type="bpe", vocab_size=500)
    texts = (text * 500 for text in endless(1000))  # 10 MB
    assert peak(lambda: training.train_tokenizer(texts, options, max_sentences=500)) < 3


def test_even_sample():
    kept, seen = sentencepiece_training.sample_evenly(map(str, range(10_000)), 500)
    assert seen == 10_000 and len(set(kept)) == 500
    assert np.mean(list(map(int, kept))) == pytest.approx(5000, abs=400)
    assert sentencepiece_training.sample_evenly(map(str, range(10_000)), 500)[0] == kept
    assert sentencepiece_training.sample_evenly(["a", "b"], 500) == (["a", "b"], 2)


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_counting_by_chunks_changes_no_word(kind, monkeypatch):
    """Words are split from white space and what follows it, each different one once."""
    seen: list[Counter[str]] = []
    monkeypatch.setattr(training, "count_words", lambda t, split: seen.append(count(t, split)) or seen[-1])
    count = word_counts.count_words
    generator = random.Random(0)
    texts = ["".join(generator.choices("ab'sé1.今 \u00a0\t\n\u3000", k=60)) for _ in range(500)] + TRICKY
    training.train_tokenizer(texts, TokenizerTrainingConfig(type=kind, vocab_size=400))
    whole: Counter[str] = Counter()
    if kind == "byte_bpe":
        pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pre = tokenizers.pre_tokenizers.BertPreTokenizer()
        texts = list(map(tokenizers.normalizers.BertNormalizer(lowercase=True).normalize_str, texts))
    for text in texts:
        whole.update(word for word, _ in pre.pre_tokenize_str(text))
    assert whole.pop("x" * 300) == 1  # too long: cut for BPE, unknown for WordPiece
    if kind == "byte_bpe":
        whole["x" * 100] += 3
    assert seen == [whole]
