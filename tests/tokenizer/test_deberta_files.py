"""DeBERTa's SentencePiece tokenizer: the rules that its class in Transformers makes around the pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
from helpers.tokenizer_folders import LOREM, assert_ids_of_transformers, ids, sentencepiece_folder

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer

TEXTS = [
    "", " ", " The  fox\n\t jumps", "dog e\u0301 \U0001f642", "[MASK] and [CLS]x[SEP]", "the [MASK]dog", "ｄｏｇ ﬁx",
    "a\u00a0b\u3000c", "over, the dog!  ", "<sep> fox", "THE DOG",
]  # fmt: skip


def train(directory: Path, **options) -> Path:
    """A small model with the control tokens of DeBERTa-v3's."""
    directory.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([LOREM, "é ë, ! x"] * 3),
        model_prefix=str(directory / "spm"),
        minloglevel=2,
        **{
            "vocab_size": 38,
            "pad_id": 0,
            "bos_id": 1,
            "eos_id": 2,
            "unk_id": 3,
            "user_defined_symbols": ["<sep>"],
            **options,
        },
        pad_piece="[PAD]",
        bos_piece="[CLS]",
        eos_piece="[SEP]",
        unk_piece="[UNK]",
    )
    (directory / "spm.vocab").unlink()
    return directory


@pytest.fixture(scope="module")
def pieces(tmp_path_factory) -> Path:
    return train(tmp_path_factory.mktemp("deberta") / "spm")


def folder(source: Path, target: Path, **config) -> Path:
    return sentencepiece_folder(source, target, "deberta-v2", **config)


def test_texts_are_composed_and_spaces_single_and_nothing_else_is_folded(pieces, tmp_path):
    t = load_tokenizer(folder(pieces, tmp_path / "plain"))
    assert (t.pad_id, t.cls_id, t.sep_id, t.unk_id, t.mask_id) == (0, 1, 2, 3, 38) and t.vocab_size == 39
    assert ids(t, "the  dog\n ") == ids(t, "the dog") and ids(t, "e\u0301") == ids(t, "é")
    assert t.unk_id in ids(t, "ｄｏｇ") and t.unk_id in ids(t, "THE")
    assert ids(t, "the [MASK]")[-2:] == [38, 2] and ids(t, "the", "dog")[0] == 1
    [[pair]] = t.encode(["the"], ["dog"])
    assert pair.type_ids.tolist() == [0] * (len(pair.ids) - len(ids(t, "dog")) + 1) + [1] * (len(ids(t, "dog")) - 1)
    lower = load_tokenizer(folder(pieces, tmp_path / "lower", do_lower_case=True, split_by_punct=True))
    assert ids(lower, "THE DOG") == ids(t, "the dog") and ids(lower, "the, dog") != ids(t, "the, dog")


def test_a_saved_tokenizer_and_rules_of_other_versions_give_the_same_ids(pieces, tmp_path):
    t = load_tokenizer(folder(pieces, tmp_path / "spm"))
    t.save(tmp_path / "saved")
    saved = load_tokenizer(tmp_path / "saved")
    # Transformers 4 wrote a tokenizer.json that folds characters; Transformers 5 makes its rules anew.
    rules = json.loads((tmp_path / "saved/tokenizer.json").read_text())
    rules["normalizer"], rules["post_processor"] = {"type": "NFKC"}, None
    (tmp_path / "old").mkdir()
    (tmp_path / "old/tokenizer.json").write_text(json.dumps(rules))
    (tmp_path / "old/tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaV2TokenizerFast"}))
    old = load_tokenizer(tmp_path / "old")
    for text in TEXTS:
        assert ids(saved, text) == ids(old, text) == ids(t, text), text


@pytest.mark.parametrize("options", [{"model_type": "bpe"}, {"byte_fallback": True, "vocab_size": 294}])
def test_models_that_transformers_would_read_as_something_else_are_refused(options, tmp_path):
    directory = folder(train(tmp_path / "spm", **options), tmp_path / "folder")
    with pytest.raises(UserError, match=r"spm\.model: expected a SentencePiece model of type unigram without byte"):
        load_tokenizer(directory)


@pytest.mark.parity
@pytest.mark.parametrize(
    "config", [{}, {"do_lower_case": True, "split_by_punct": True, "add_prefix_space": False}, {"mask_token": "[M]"}]
)
def test_ids_are_those_of_transformers(config, pieces, tmp_path, transformers):
    directory = folder(pieces, tmp_path / "spm", **config)
    assert_ids_of_transformers(transformers, directory, tmp_path, TEXTS, "the dog")
