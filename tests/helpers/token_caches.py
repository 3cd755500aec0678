"""For tests: files of text, and opening them through a token cache."""

from __future__ import annotations

import gzip
import json
from typing import Any

from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.build import Tokenizing
from jaxlm.data.corpus.cache import open_corpora, open_corpus


def text_files(tmp_path):
    """A fixture that writes a file of text, or jsonl rows of texts, and returns its path."""

    def to_file(name: str, content: str | bytes | list[str]):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps({"text": text}) + "\n" for text in content)
        raw = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
        return str(path)

    return to_file


def train_opener(tmp_path):
    """A fixture that opens `data.train` in one cache, with any of the arguments changed."""

    def opened(source, *, tokenizer=None, cache=tmp_path / "cache", wrap="documents", **data: Any):
        config = DataConfig.model_validate({"train": source, **data})
        assert config.train is not None
        how = Tokenizing("text", tokenizer or byte_tokenizer(), wrap, cache)
        return open_corpus(config.train, key="data.train", split="train", data=config, how=how)

    return opened


def open_all(tmp_path, splits=("train", "validation", "test"), stop=lambda: None, **data: Any):
    how = Tokenizing("text", byte_tokenizer(), "documents", tmp_path / "cache", stop)
    return open_corpora(DataConfig.model_validate(data), splits, how)


def documents_of(corpus):
    offsets = corpus.offsets.tolist()
    return [corpus.read(start, stop).tolist() for start, stop in zip(offsets[:-1], offsets[1:], strict=True)]


def texts_of(corpus):
    """Without what wraps them."""
    return [bytes(token for token in ids if token < 256).decode() for ids in documents_of(corpus)]
