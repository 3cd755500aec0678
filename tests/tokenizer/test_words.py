"""Texts that come in words: which word each token belongs to; prompts and their continuations."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.tokenizer_folders import LOREM, byte_level, fairseq, folder, ids, loaded

from jaxlm.errors import UserError
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer

WORDS = ["The", "unbelievable", "", "Straße", "今天", "🙂x", "don't", "U.N.", "\x07", "re-election", "."]


TRAINED = {"wordpiece": "bert", "unigram": "t5", "bpe": "llama", "byte_bpe": "gpt2"}
FILES = ("bert-base-uncased", "gpt2", "t5-base", "mistral-v1", "stories260k", "xlmr", "roberta")


@pytest.fixture(scope="module", params=[*TRAINED, *FILES])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    name, directory = request.param, tmp_path_factory.mktemp("tokenizer") / "files"
    if name in TRAINED:
        options = TokenizerTrainingConfig(type=name, family=TRAINED[name], vocab_size=400)
        return train_tokenizer(
            [f"{LOREM} Straße 今天 don't U.N. re-election", "".join(map(chr, range(33, 127)))], options
        )
    if name == "roberta":
        return load_tokenizer(byte_level(directory, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]))
    shared_data = request.getfixturevalue("shared_data")
    if name == "xlmr":
        fairseq(directory, shared_data)
        return load_tokenizer(directory)
    return loaded(folder(shared_data, name))


def word_by_word(tokenizer: Tokenizer, words: list[str]) -> tuple[list[int], list[int]]:
    """Ids and word indices of words encoded one by one, each with the mark of the space before it."""
    byte = tokenizer.id("Ġthe") is not None or tokenizer.id("Ġ") is not None
    found: list[int] = []
    index: list[int] = []
    for i, word in enumerate(words):
        own = ids(tokenizer, f" {word}" if byte and i else word, special_tokens=False)
        found += own
        index += [i] * len(own)
    return found, index


def test_tokens_belong_to_their_words(tokenizer):
    words = [word for word in WORDS if word and word.isprintable()]
    expected, index = word_by_word(tokenizer, words)
    found, word_index = tokenizer.encode_words(words)
    assert found.dtype == word_index.dtype == np.int32 and found.shape == word_index.shape
    assert found.tolist() == ids(tokenizer, " ".join(words))
    before, after = map(len, tokenizer.special_token_affixes)
    assert word_index.tolist() == [-1] * before + index + [-1] * after
    assert found.tolist()[before : len(found) - after] == expected


def test_words_of_nothing_or_of_control_characters(tokenizer):
    """They get their own tokens or none, and shift no other word."""
    found, word_index = tokenizer.encode_words(WORDS)
    assert found.tolist() == ids(tokenizer, " ".join(WORDS))
    own = word_index[word_index >= 0]
    assert (np.diff(own) >= 0).all() and 2 not in own and {0, 1, 3, 4, 5, 6, 7, 9, 10} <= set(own.tolist())
    for i, word in enumerate(WORDS):
        if i in own and word.isprintable() and tokenizer.unk_id not in found[word_index == i]:
            text = tokenizer.decode(found[word_index == i]).replace(" ", "")
            assert text in (word, word.lower(), word.lower().replace("ß", "ss")), word
    for words in ([], ["", ""]):
        found, word_index = tokenizer.encode_words(words)
        assert found.tolist() == ids(tokenizer, " ".join(words)) and (word_index == -1).all()


def test_too_many_words_lose_their_end(tokenizer):
    found, word_index = tokenizer.encode_words(["a b", "house"] * 20, max_length=12)
    assert found.tolist() == ids(tokenizer, " ".join(["a b", "house"] * 20), max_length=12)
    whole = tokenizer.encode_words(["a b", "house"] * 20)[1]
    before, after = map(len, tokenizer.special_token_affixes)
    assert word_index.tolist() == [*whole.tolist()[: 12 - after], *[-1] * after]
    assert len(word_index) == 12 and word_index[before] == 0
    with pytest.raises(UserError, match="max_length: 0 leaves no room"):
        tokenizer.encode_words(["a"], max_length=0)


def test_prompts_and_continuations(tokenizer):
    prompt = tokenizer.encode_prompt("The house")
    before, _ = tokenizer.special_token_affixes
    assert prompt == [*before.tolist(), *ids(tokenizer, "The house", special_tokens=False)]
    text = tokenizer.decode(ids(tokenizer, "The house is old."))
    new = ids(tokenizer, "The house is old.", special_tokens=False)[len(prompt) - len(before) :]
    assert tokenizer.continuation(prompt, new) == text[len(tokenizer.decode(prompt)) :]
    assert tokenizer.continuation(prompt, []) == ""
