"""ALBERT's SentencePiece tokenizer: the rules that its class in Transformers makes around the pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from helpers.tokenizer_folders import LOREM, assert_ids_of_transformers, ids, sentencepiece_folder

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer

TEXTS = [
    "", " ", " The  fox\n\t jumps", "dog e\u0301 \u00e9 \U0001f642", "[MASK] and [CLS]x[SEP]", "the [MASK]dog",
    "\uff44\uff4f\uff47 \ufb01x", "a\u00a0b\u3000c\u200bd", "over, the (dog)!  ", "``the'' \"fox\" '' `",
    "THE DOG Stra\u00dfe", "\u0130x lazy-dog. 9,000 fo(x", "\u0627\u0644 \u4eca\u5929 dog", "<pad> <unk> the",
    "\x00\x07dog\ufffd",
]  # fmt: skip

MASK = {"content": "[MASK]", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False}


def train(directory: Path, **options) -> Path:
    """A small model with the pieces that ALBERT's begin with."""
    directory.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LOREM, "é ë, ! x 9 ( ) - ."] * 3),
        model_prefix=str(directory / "spiece"),
        minloglevel=2,
        **{
            "vocab_size": 48,
            "hard_vocab_limit": options.get("model_type") == "bpe",
            "pad_id": 0,
            "unk_id": 1,
            "bos_id": -1,
            "eos_id": -1,
            "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
            "user_defined_symbols": ["(", ")", "-", "."],
            **options,
        },
    )
    (directory / "spiece.vocab").unlink()
    return directory


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("albert") / "spiece")


def folder(source: Path, target: Path, **config) -> Path:
    return sentencepiece_folder(source, target, "albert", **config)


def test_texts_are_lowered_and_accents_dropped_unless_the_config_says_otherwise(pieces, tmp_path):
    t = load_tokenizer(folder(pieces, tmp_path / "plain"))
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (0, 1, 2, 3, 4)
    assert ids(t, "THE  dog\n ") == ids(t, "the dog") and ids(t, "``thé''") == ids(t, '"the"')
    assert ids(t, "the [MASK]")[-2:] == [4, 3] and ids(t, "the", "dog")[0] == 2
    [[pair]] = t.encode(["the"], ["dog"])
    assert pair.type_ids.tolist() == [0] * (len(pair.ids) - len(ids(t, "dog")) + 1) + [1] * (len(ids(t, "dog")) - 1)
    kept = load_tokenizer(folder(pieces, tmp_path / "kept", do_lower_case=False, keep_accents=True))
    assert kept.unk_id in ids(kept, "THE") and kept.unk_id not in ids(kept, "é") != ids(kept, "e")


def test_a_saved_tokenizer_and_rules_of_other_versions_give_the_same_ids(pieces, tmp_path):
    t = load_tokenizer(folder(pieces, tmp_path / "spm"))
    t.save(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    # Transformers 4 wrote further rules; Transformers 5 makes its own, of which the table of characters is kept.
    rules = json.loads((tmp_path / "saved/tokenizer.json").read_text())
    rules["normalizer"]["normalizers"].append({"type": "Replace", "pattern": {"String": "dog"}, "content": "fox"})
    rules["pre_tokenizer"], rules["model"]["unk_id"] = None, 0
    (tmp_path / "old").mkdir()
    (tmp_path / "old/tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "old/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "AlbertTokenizerFast"}))
    old = load_tokenizer(tmp_path / "old")
    for text in TEXTS:
        assert ids(saved, text) == ids(old, text) == ids(t, text), text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model_type": "bpe"}, "expected a SentencePiece model of type unigram without byte"),
        ({"unk_id": 3, "control_symbols": ["[CLS]", "[SEP]"]}, "<unk> has the id 3; expected 1"),
    ],
)
def test_models_that_transformers_would_read_as_something_else_are_refused(options, message, tmp_path):
    directory = folder(train(tmp_path / "spm", **options), tmp_path / "folder")
    with pytest.raises(UserError, match=rf"spiece\.model: {message}"):
        load_tokenizer(directory)


def test_a_setting_of_another_type_is_refused(pieces, tmp_path):
    with pytest.raises(UserError, match="keep_accents: expected true or false, found 'no'"):
        load_tokenizer(folder(pieces, tmp_path / "spm", keep_accents="no"))


@pytest.mark.parity
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": False, "keep_accents": True, "remove_space": True},
        {"add_prefix_space": False, "mask_token": {"__type": "AddedToken", **MASK}},
    ],
)
@pytest.mark.parametrize("rule", ["nmt_nfkc", "identity"])
def test_ids_are_those_of_transformers(config, rule, tmp_path, transformers):
    directory = folder(train(tmp_path / "spm", normalization_rule_name=rule), tmp_path / "in", **config)
    assert assert_ids_of_transformers(transformers, directory, tmp_path, TEXTS, "the dog") == "AlbertTokenizer"
