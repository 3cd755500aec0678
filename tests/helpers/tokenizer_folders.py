"""For tests: directories with tokenizers of every kind, and the ids of a text."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import tokenizers

from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer

FOLDERS = ("bert-base-uncased", "bert-base-cased", "bert-base-chinese", "gpt2", "t5-base", "mistral-v1")
LLAMAS = {"mistral-v1": "tokenizers/mistral-v1", "stories260k": "checkpoints/stories260k"}
LOREM = "the quick brown fox jumps over the lazy dog and the dog sleeps on while the fox runs away"


def folder(shared_data: Path, name: str) -> Path:
    return shared_data / LLAMAS.get(name, f"tokenizers/{name}")


@functools.cache
def loaded(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


def slow_files(source: Path, target: Path) -> Path:
    """The folder without its tokenizer.json."""
    target.mkdir()
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors" and path.name != "tokenizer.json":
            shutil.copyfile(path, target / path.name)
    return target


def ids(tokenizer: Tokenizer, text: str, pair: str | None = None, **options) -> list[int]:
    [[encoded]] = tokenizer.encode([text], None if pair is None else [pair], **options)
    assert encoded.ids.dtype == encoded.type_ids.dtype == np.int32
    assert encoded.ids.shape == encoded.type_ids.shape
    return encoded.ids.tolist()


def golden(directory: Path) -> list[tuple[str, list[int]]]:
    """Strings with the ids the model was pretrained on.

    For mistral-v1 these are `sp_ids` behind <s>: the folder's `input_ids` come from Transformers 5.23, whose conversion
    departs from sentencepiece on runs of spaces (2 of the 6 strings).
    """
    rows = json.loads((next(directory.glob("golden*.json"))).read_text("utf-8"))
    if directory.name == "mistral-v1":
        return [(row["text"], [1, *row["sp_ids"]]) for row in rows]
    return [(row["text"], row.get("input_ids") or row["ids"]) for row in rows]


def byte_level(directory: Path, special: list[str], **config) -> Path:
    """A byte-level BPE vocabulary: `special` first, then trained tokens."""
    directory.mkdir()
    model = tokenizers.ByteLevelBPETokenizer()
    model.train_from_iterator([LOREM] * 3, vocab_size=300, special_tokens=special, show_progress=False)
    model.save_model(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def fairseq(directory: Path, shared_data: Path) -> sentencepiece.SentencePieceProcessor:
    """A small unigram model with the control tokens of XLM-R's: <unk> <s> </s>."""
    directory.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(shared_data / "translation/multi30k_en_de/validation.de"),
        model_prefix=str(directory / "sentencepiece.bpe"),
        vocab_size=500,
        minloglevel=2,
    )
    (directory / "sentencepiece.bpe.vocab").unlink()
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizer"}))
    return sentencepiece.SentencePieceProcessor(model_file=str(directory / "sentencepiece.bpe.model"))


# Processes.


def run(script: str) -> str:
    """Runs Python source in a process of its own, without a setting for threads; its standard error must be empty."""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def assert_ids_of_transformers(transformers: Any, directory: Path, work: Path, texts: list[str], second: str) -> str:
    """Compares the ids of texts, and of pairs: of a folder, then of the tokenizer.json that Transformers makes of it.

    Args:
      transformers: the module (a fixture).
    Returns:
      The name of Transformers' class.
    """
    theirs: Any = None
    for _ in range(2):
        theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
        for text in texts:
            assert ids(ours, text) == theirs(text).input_ids, text
            assert ids(ours, text, second) == theirs(text, second).input_ids, text
        directory = work / "theirs"
        theirs.save_pretrained(directory)
    assert (directory / "tokenizer.json").is_file()
    return type(theirs).__name__


def sentencepiece_folder(source: Path, target: Path, model_type: str, **config: object) -> Path:
    """A copy of a folder with a SentencePiece model, with a config.json and this tokenizer_config.json."""
    shutil.copytree(source, target)
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    (target / "config.json").write_text(json.dumps({"model_type": model_type}))
    return target
