"""MPNet's WordPiece tokenizer: BERT's rules under RoBERTa's special tokens."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
from helpers.tokenizer_folders import assert_ids_of_transformers, ids

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "the", "fox", ",", "!", "<", ">", "今", *string.ascii_lowercase]
VOCABULARY = [*WORDS, *(f"##{letter}" for letter in string.ascii_lowercase)]
TEXTS = ["", "The fox, the FOX!", "a<mask>b", "the <mask> fox", "<S> </s> [UNK]", "今天 é", "  fox\tfoxes\n", "<mask"]


def folder(directory: Path, *, mask: bool = True, **config) -> Path:
    directory.mkdir()
    lines = [*VOCABULARY, *(["<mask>"] if mask else [])]
    (directory / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "config.json").write_text(json.dumps({"model_type": "mpnet"}))
    return directory


def test_texts_are_bert_s_and_special_tokens_roberta_s(tmp_path):
    t = load_tokenizer(folder(tmp_path / "plain"))
    mask = len(VOCABULARY)
    assert (t.cls_id, t.pad_id, t.sep_id, t.unk_id, t.mask_id) == (0, 1, 2, 4, mask)
    assert ids(t, "The FOX!") == [0, 5, 6, 8, 2] and ids(t, "the", "fox") == [0, 5, 2, 2, 6, 2]
    assert ids(t, "fox <mask>") == [0, 6, mask, 2]
    cased = load_tokenizer(folder(tmp_path / "cased", mask=False, do_lower_case=False))
    assert cased.mask_id == mask and ids(cased, "The fox") == [0, 4, 6, 2]

    t.save(tmp_path / "saved")
    rules = json.loads((tmp_path / "saved/tokenizer.json").read_text())
    rules["normalizer"], rules["post_processor"] = None, None
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "odd/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MPNetTokenizerFast"}))
    saved, odd = load_tokenizer(tmp_path / "saved"), load_tokenizer(tmp_path / "odd")
    for text in TEXTS:
        assert ids(saved, text) == ids(odd, text) == ids(t, text), text


def test_a_vocabulary_without_its_special_tokens_is_refused(tmp_path):
    directory = folder(tmp_path / "plain")
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n")
    with pytest.raises(UserError, match=r"vocab\.txt: no <s> among its 5 lines"):
        load_tokenizer(directory)


@pytest.mark.parity
@pytest.mark.parametrize("config", [{}, {"do_lower_case": False, "strip_accents": True}, {"mask_token": "<m>"}])
def test_ids_are_those_of_transformers(config, tmp_path, transformers):
    directory = folder(tmp_path / "plain", **config)
    assert_ids_of_transformers(transformers, directory, tmp_path, TEXTS, "the fox")
