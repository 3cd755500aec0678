"""Tokenizer directories that are not as they should be: Transformers' ids, or a line that says why not."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import tokenizers
from helpers.tokenizer_folders import byte_level, ids

from jaxlm.errors import UserError
from jaxlm.tokenizer.damage import quiet_panics, refused_if_damaged
from jaxlm.tokenizer.tokenizer import load_tokenizer
from jaxlm.tokenizer.vocabulary import sentinels

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##b", "e", "n", "t", "##n", "##t", "[", "]", "m"]
ENT = len(WORDS)
FAIRSEQ = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def make(directory: Path, **files: Any) -> Path:
    """Writes files, names without their dots: a `vocab_txt` of WORDS, and JSON."""
    directory.mkdir(exist_ok=True)
    for name, value in files.items():
        stem, _, suffix = name.rpartition("_")
        text = value if isinstance(value, str) else json.dumps(value)
        (directory / f"{stem}.{suffix}").write_text(text, encoding="utf-8")
    return directory


def bert(directory: Path, **files: Any) -> Path:
    return make(directory, **{"vocab_txt": "\n".join(WORDS) + "\n", "config_json": {"model_type": "bert"}, **files})


def bert_json(directory: Path) -> dict[str, Any]:
    """The contents of a cased tokenizer.json."""
    load_tokenizer(bert(directory, tokenizer_config_json={"do_lower_case": False})).save(directory / "saved")
    return json.loads((directory / "saved" / "tokenizer.json").read_text("utf-8"))


def byte_level_json(directory: Path, model_type: str, prefix: bool, **config: Any) -> Path:
    """A byte-level tokenizer.json with its own idea of the space before a text, beside a config."""
    byte_level(directory, ["<|endoftext|>"] if model_type == "gpt2" else FAIRSEQ)
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE.from_file(str(directory / "vocab.json"), str(directory / "merges.txt"))
    )
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    if model_type == "roberta":
        backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    backend.save(str(directory / "tokenizer.json"))
    return make(directory, tokenizer_config_json=config, config_json={"model_type": model_type})


def sentencepiece_model(directory: Path, **options: Any) -> Path:
    directory.mkdir(exist_ok=True)
    text = directory / "text"
    text.write_text("\n".join(["the quick brown fox jumps over the lazy dog"] * 20))
    ids = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(directory / "spiece"), minloglevel=2, hard_vocab_limit=False, **ids, **options
    )
    for name in ("text", "spiece.vocab"):
        (directory / name).unlink()
    return directory


# Classes.


@pytest.mark.parametrize("where", ["config_json", "tokenizer_config_json"])
@pytest.mark.parametrize(
    "name", ["BertJapaneseTokenizer", "BertweetTokenizer", "PhobertTokenizer", "BarthezTokenizer", "HerbertTokenizer"]
)
def test_classes_that_split_otherwise_are_refused(name, where, tmp_path):
    config = {"config_json": {"model_type": "bert"}}
    config[where] = {**config.get(where, {}), "tokenizer_class": name}
    with pytest.raises(UserError, match=rf"{where.replace('_json', '')}\.json names the tokenizer_class '{name}'"):
        load_tokenizer(bert(tmp_path, **config))


def test_a_tokenizer_json_speaks_for_a_class_that_is_not_known_but_not_for_one_in_python(tmp_path):
    rules = bert_json(tmp_path / "source")
    config = {"model_type": "bert", "tokenizer_class": "HerbertTokenizer"}
    named = make(tmp_path / "named", tokenizer_json=rules, config_json=config)
    assert ids(load_tokenizer(named), "a b") == [2, 5, 6, 3]
    make(named, config_json={**config, "tokenizer_class": "BertJapaneseTokenizer"})
    with pytest.raises(UserError, match="Python code"):
        load_tokenizer(named)


def test_vocabularies_of_models_that_are_not_known_are_refused(tmp_path):
    with pytest.raises(UserError, match="config.json names the model_type 'xlnet'"):
        load_tokenizer(bert(tmp_path / "a", config_json={"model_type": "xlnet"}))
    byte_level(tmp_path / "b", ["<|endoftext|>"])  # Qwen splits texts by another pattern
    with pytest.raises(UserError, match="config.json names the model_type 'qwen2'"):
        load_tokenizer(make(tmp_path / "b", config_json={"model_type": "qwen2"}))
    with pytest.raises(UserError, match=r"the model type roberta .* vocab\.json \+ merges\.txt; found vocab\.txt"):
        load_tokenizer(bert(tmp_path / "c", config_json={"model_type": "roberta"}))


# Added tokens.

LISTED = {"added_tokens_json": {"[ENT]": ENT}}
SPECIAL = {"additional_special_tokens": ["[ENT]"]}
ODD_VOCABULARIES = {
    "added": LISTED,
    "added and special": {**LISTED, "tokenizer_config_json": SPECIAL},
    "added and in the map": {**LISTED, "special_tokens_map_json": SPECIAL},
    "special": {"tokenizer_config_json": SPECIAL},
    "in the map": {"special_tokens_map_json": SPECIAL},
    "with a name": {"tokenizer_config_json": {"ent_token": "[ENT]"}},
    "split": {**LISTED, "tokenizer_config_json": {"split_special_tokens": True}},
    "not in the decoder": {**LISTED, "tokenizer_config_json": {"added_tokens_decoder": {"4": {"content": "[MASK]"}}}},
}
TEXTS = ("a [ent] [ENT] b", "A[ENT]b ab", "[MASK] a [mask][SEP]")


@pytest.mark.parametrize(
    ("name", "lower", "upper"),
    [
        ("added", [ENT], [ENT]),  # found in the text as it is after normalization
        ("added and special", [13, 8, 11, 12, 14], [ENT]),
        ("split", [ENT], [ENT]),
        ("not in the decoder", [13, 8, 11, 12, 14], [13, 8, 11, 12, 14]),
    ],
)
def test_added_tokens_are_found_in_texts(name, lower, upper, tmp_path):
    tokenizer = load_tokenizer(bert(tmp_path / "in", **ODD_VOCABULARIES[name]))
    assert ids(tokenizer, TEXTS[0]) == [2, 5, *lower, *upper, 6, 3]
    tokenizer.save(tmp_path / "out")
    assert ids(load_tokenizer(tmp_path / "out"), TEXTS[0]) == [2, 5, *lower, *upper, 6, 3]


@pytest.mark.parity
@pytest.mark.parametrize("name", ODD_VOCABULARIES)
def test_added_tokens_have_the_ids_of_transformers(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(bert(tmp_path, **ODD_VOCABULARIES[name]))
    ours = load_tokenizer(tmp_path)
    assert [ids(ours, text) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]


def test_added_tokens_that_get_another_id_are_refused(tmp_path):
    with pytest.raises(UserError, match=rf"'\[ENT\]' should have id 77, but the vocabulary gives it {ENT}"):
        load_tokenizer(bert(tmp_path, added_tokens_json={"[ENT]": 77}))


# Settings.


@pytest.mark.parametrize("given", [{"add_prefix_space": True}, {"add_prefix_space": False}, {}])
@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    ("model_type", "name"), [("roberta", "RobertaTokenizer"), ("gpt2", None), ("gpt2", "PreTrainedTokenizerFast")]
)
def test_the_space_before_a_text_is_that_of_transformers(model_type, name, prefix, given, tmp_path):
    """Classes of their own go by tokenizer_config.json, the generic one by tokenizer.json."""
    config = {**given, **({"tokenizer_class": name} if name else {})}
    tokenizer = load_tokenizer(byte_level_json(tmp_path / "x", model_type, prefix, **config))
    expected = prefix if name == "PreTrainedTokenizerFast" else given.get("add_prefix_space", False)
    assert (ids(tokenizer, "the dog") == ids(tokenizer, " the dog")) is expected


@pytest.mark.parametrize(("given", "lowercase"), [({}, True), ({"do_lower_case": False}, False)])
def test_case_is_that_of_tokenizer_config_json_for_a_bert_class(given, lowercase, tmp_path):
    rules = bert_json(tmp_path / "source")
    rules["normalizer"]["lowercase"] = not lowercase
    folder = make(
        tmp_path / "x", tokenizer_json=rules, tokenizer_config_json={"tokenizer_class": "BertTokenizer", **given}
    )
    assert (ids(load_tokenizer(folder), "A") == [2, 5, 3]) is lowercase


def test_a_leading_space_of_sentencepiece_can_be_left_out(tmp_path):
    load_tokenizer(sentencepiece_model(tmp_path / "x", vocab_size=50)).save(tmp_path / "y")
    with_space = load_tokenizer(tmp_path / "y")
    config = {"tokenizer_class": "XLMRobertaTokenizer", "add_prefix_space": False, "eos_token": "</s>"}
    rules = json.loads((tmp_path / "y" / "tokenizer.json").read_text("utf-8"))
    bare = load_tokenizer(make(tmp_path / "z", tokenizer_json=rules, tokenizer_config_json=config))
    assert with_space.tokens(ids(with_space, "the"))[0].startswith("▁")
    assert not bare.tokens(ids(bare, "the"))[0].startswith("▁")
    make(tmp_path / "x", tokenizer_config_json={**config, "tokenizer_class": "LlamaTokenizer"})
    (tmp_path / "x" / "spiece.model").rename(tmp_path / "x" / "tokenizer.model")
    model = load_tokenizer(tmp_path / "x")
    assert not model.tokens(ids(model, "the", special_tokens=False))[0].startswith("▁")


# Sentinels.


@pytest.mark.parametrize("config", [{"extra_ids": 0}, {}])
def test_sentinels_may_have_the_mark_of_a_space(config, tmp_path):
    """As mT5's, whose vocabulary has them."""
    symbols = [f"▁<extra_id_{i}>" for i in reversed(range(5))]
    sentencepiece_model(tmp_path, vocab_size=50, user_defined_symbols=symbols)
    make(
        tmp_path, config_json={"model_type": "mt5"}, tokenizer_config_json={"tokenizer_class": "T5Tokenizer", **config}
    )
    tokenizer = load_tokenizer(tmp_path)
    found = sentinels(tokenizer)
    assert tokenizer.tokens(found) == symbols[::-1]
    assert found[0] in ids(tokenizer, "the <extra_id_0> fox")
    tokenizer.save(tmp_path / "saved")
    np.testing.assert_array_equal(sentinels(load_tokenizer(tmp_path / "saved")), found)


# Special tokens in texts.


def test_special_tokens_in_texts_are_read_as_such_or_split(tmp_path):
    tokenizer = load_tokenizer(bert(tmp_path / "in"))
    assert ids(tokenizer, "a [MASK] b") == [2, 5, 4, 6, 3]
    whole = tokenizer.fingerprint
    split = tokenizer.splitting(True)
    assert ids(split, "a [MASK] b") == [2, 5, 13, 1, 14, 6, 3]
    assert split.fingerprint != whole
    split.save(tmp_path / "out")
    again = load_tokenizer(tmp_path / "out")
    assert again.fingerprint == split.fingerprint and ids(again, "a [MASK] b") == [2, 5, 13, 1, 14, 6, 3]
    assert again.splitting(False).fingerprint == whole


# Damage.


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config_json": {"do_lower_case": "yes"}}, "do_lower_case: expected true or false, found 'yes'"),
        ({"tokenizer_config_json": {"truncation_side": "top"}}, 'truncation_side: expected "left" or "right"'),
        ({"tokenizer_config_json": {"extra_ids": -1}}, "extra_ids: expected a whole number"),
        ({"tokenizer_config_json": {"model_max_length": "long"}}, "model_max_length: expected a number"),
        ({"tokenizer_config_json": {"tokenizer_class": 3}}, "tokenizer_class: expected a name, found 3"),
        ({"tokenizer_config_json": {"unk_token": 3}}, "expected the text of a token"),
        ({"tokenizer_config_json": {"unk_token": {"lstrip": True}}}, "expected the text of a token"),
        ({"tokenizer_config_json": {"extra_special_tokens": 7}}, "extra_special_tokens: expected a list"),
        ({"tokenizer_config_json": {"added_tokens_decoder": [1]}}, "added_tokens_decoder: expected an object"),
        ({"tokenizer_config_json": {"added_tokens_decoder": {"x": "a"}}}, "added tokens: expected an id, found 'x'"),
        ({"added_tokens_json": {"[ENT]": "one"}}, "added tokens: expected an id"),
        ({"tokenizer_config_json": {"notes": ["\ud800"]}}, "half of a surrogate pair"),
        ({"added_tokens_json": {"[A]": ENT, "[B]": ENT}}, "two tokens have the id"),
        ({"special_tokens_map_json": []}, "special_tokens_map.json: expected a JSON object"),
        ({"config_json": "[" * 10_000}, "config.json: not valid JSON"),
        ({"config_json": {"model_type": ["bert"]}}, "model_type: expected a name"),
        ({"vocab_txt": "", "config_json": {}}, r"no \[UNK\] among its 1 lines"),
    ],
)
def test_wrong_types_are_refused(files, message, tmp_path):
    with pytest.raises(UserError, match=message) as refused:
        load_tokenizer(bert(tmp_path, **files))
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("model", "vocab"), {}),
        (("model", "vocab"), {"[UNK]": 4_000_000_000}),
        (("model", "vocab"), [3]),
        (("model", "type"), "Unigram"),
        (("post_processor",), {"type": "BertProcessing", "sep": ["[SEP]", -1], "cls": ["[CLS]", 2]}),
        (("post_processor", "special_tokens"), {}),
        (("normalizer",), {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        (("normalizer",), {"type": "Precompiled", "precompiled_charsmap": None}),  # Rust panics
        (("model",), {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"}),  # fails at the first other word
        (("added_tokens",), [{"id": 4}]),
        (("pre_tokenizer",), "none"),
    ],
)
def test_a_tokenizer_json_with_other_contents_is_refused(place, value, tmp_path, capfd):
    rules = bert_json(tmp_path / "source")
    inner = rules
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(UserError) as refused:
        load_tokenizer(make(tmp_path / "x", tokenizer_json=rules))
    assert str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)
    assert capfd.readouterr().err == ""


def test_panics_of_rust_are_one_line(capfd):
    class PanicException(BaseException):
        pass

    with pytest.raises(UserError, match="DIR: a tokenizer file is damaged.*PanicException: a b"):
        with refused_if_damaged("DIR"), quiet_panics():
            os.write(2, b"thread '<unnamed>' panicked")
            raise PanicException("a\nb")
    with pytest.raises(KeyboardInterrupt), refused_if_damaged("DIR"), quiet_panics():
        os.write(2, b"something else")
        raise KeyboardInterrupt
    assert capfd.readouterr().err == "something else"


def test_damaged_files_are_read_or_refused(tmp_path):
    """Bits flipped, ends cut off: never anything but a tokenizer or a UserError."""
    rng = random.Random(0)
    sources = [bert(tmp_path / "bert"), sentencepiece_model(tmp_path / "t5", vocab_size=50)]
    for source in list(sources):
        load_tokenizer(source).save(tmp_path / f"{source.name}-json")
        sources.append(tmp_path / f"{source.name}-json")
    for number in range(60):
        folder = shutil.copytree(rng.choice(sources), tmp_path / f"damaged{number}")
        path = rng.choice(sorted(folder.iterdir()))
        content = bytearray(path.read_bytes())
        if rng.random() < 0.5:
            content = content[: rng.randrange(len(content))]
        for _ in range(rng.choice([1, 8, 64])):
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(content))
        try:
            load_tokenizer(folder).encode(["a the quick 今天"], max_length=20)
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(("name", "around"), [("PreTrainedTokenizerFast", 0), ("TokenizersBackend", 0), (None, 1)])
def test_a_generic_class_puts_nothing_around_a_text_that_its_file_does_not(name, around, tmp_path):
    """The vocabulary looks like T5's; only where no class is named is it taken for one."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3}, "<unk>"))
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    if name is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    assert ids(load_tokenizer(tmp_path), "a") == [3, *[1] * around]
