"""Tokenizers without training: meaningless vocabularies for dry runs, and whole words for benchmarks."""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import models, pre_tokenizers

from jaxlm.tokenizer.families import FAMILIES
from jaxlm.tokenizer.files import TokenizerFiles
from jaxlm.tokenizer.tokenizer import Tokenizer


def stand_in_tokenizer(model_family: str, size: int) -> Tokenizer:
    """Returns a tokenizer of `size` entries, with a model family's special tokens and meaningless words.

    Args:
      model_family: without special tokens of its own it gets GPT-2's.
    """
    family = next((family for family in FAMILIES.values() if model_family in family.names), FAMILIES["gpt2"])
    special = dict.fromkeys([*family.tokens, *(family.roles.values() if family.adds_missing else ())])
    num_words = size - len(special) - family.extra_ids
    vocabulary = {entry: i for i, entry in enumerate([*special, *(f"w{i}" for i in range(num_words))])}
    unk = next((token for token in ("[UNK]", "<unk>") if token in vocabulary), family.tokens[0])
    return Tokenizer.from_backend(tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=unk)), family)


def word_tokenizer(words: Iterable[str]) -> Tokenizer:
    """Returns a tokenizer that looks up words between white space; other words become [UNK]."""
    vocabulary = {"[UNK]": 0, "</s>": 1} | {word: i for i, word in enumerate(words, start=2)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Tokenizer(TokenizerFiles(backend, {"unk": "[UNK]", "eos": "</s>"}, {}))
