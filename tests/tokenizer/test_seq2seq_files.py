"""Tokenizers of mBART, mBART-50, Pegasus and Marian: SentencePiece models under ids of their own."""

from __future__ import annotations

import json

import pytest
import sentencepiece
from helpers.seq2seq_folders import CLASSES, GERMAN, folder, marian
from helpers.tokenizer_folders import assert_ids_of_transformers, byte_level, ids

from jaxlm.errors import UserError
from jaxlm.tokenizer.mbart_codes import MBART, MBART50
from jaxlm.tokenizer.tokenizer import load_tokenizer

TEXTS = [
    "", " ", "the dog", " The  fox\n\t jumps", "dog e\u0301 \u00e9 \U0001f642", "<mask> the<mask> x", "en_XX de_DE",
    "\ufb01x \uff44\uff4f\uff47", "a\u00a0b\u3000c", "<pad> </s> <unk>", "<mask_1> a <mask_2><unk_5>",
    ">>fra<< the dog", "das Haus ist \U0001f642\U0001f642 ß ein weißer", "\x00\x07dog\ufffd",
]  # fmt: skip


def test_mbart_puts_a_language_behind_texts_and_mbart50_in_front(tmp_path):
    for name, codes in (("mbart", MBART), ("mbart50", MBART50)):
        directory, model = folder(tmp_path / name, name, src_lang="de_DE" if name == "mbart50" else None)
        t = load_tokenizer(directory)
        size = model.get_piece_size()
        assert t.vocab_size == size + 1 + len(codes) + 1 and t.mask_id == t.vocab_size - 1
        assert (t.cls_id, t.pad_id, t.eos_id, t.unk_id) == (0, 1, 2, 3)
        assert [t.id(code) for code in codes] == list(range(size + 1, size + 1 + len(codes)))
        assert {t.id(code) for code in codes} < set(t.special_ids)
        text = [i + 1 for i in model.encode("the dog")]
        expected = [*text, 2, t.id("en_XX")] if name == "mbart" else [t.id("de_DE"), *text, 2]
        assert ids(t, "the dog") == expected and t.decode(expected) == "the dog"
        assert ids(t, "dog", "de_DE")[-2 if name == "mbart" else -1] == 2
        t.save(tmp_path / "saved")
        assert load_tokenizer(tmp_path / "saved").fingerprint == t.fingerprint
    with pytest.raises(UserError, match="src_lang: expected a code such as de_DE, found 'de_DD'; did you mean 'de_DE'"):
        load_tokenizer(folder(tmp_path / "odd", "mbart", src_lang="de_DD")[0])


def test_pegasus_has_its_tokens_of_pretraining_in_front(tmp_path):
    # Also where a file names the mask, of which Transformers 5 makes other ids than the model was trained with.
    directory, model = folder(tmp_path / "in", "pegasus", mask_token="<mask_2>", additional_special_tokens=["<mask_1>"])
    t = load_tokenizer(directory)
    assert (t.pad_id, t.eos_id, t.unk_id, t.mask_id, t.id("<mask_1>"), t.id("<unk_102>")) == (0, 1, 105, 3, 2, 104)
    assert ids(t, "the  dog") == [*(i + 103 for i in model.encode("the dog")), 1]
    assert ids(t, "the", "dog") == [*ids(t, "the")[:-1], *ids(t, "dog")]
    assert ids(t, "the<mask_1>") == [*ids(t, "the")[:-1], 2, 1] and t.decode(ids(t, "the dog")) == "the dog"
    t.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == t.fingerprint


def test_marian_splits_what_is_read_and_what_is_written_by_models_of_their_own(tmp_path):
    t = load_tokenizer(marian(tmp_path / "in"))
    vocab = json.loads((tmp_path / "in/vocab.json").read_text())
    models = [sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "in" / f"{s}.spm")) for s in
              ("source", "target")]  # fmt: skip
    assert (t.eos_id, t.unk_id, t.pad_id, t.vocab_size) == (0, 1, len(vocab) - 1, len(vocab))
    for text in ("the quick fox", "das Haus ist weiß", "ein 🙂🙂 dog"):
        for side, model in ((t, models[0]), (t.target, models[1])):
            assert ids(side, text) == [*(vocab.get(piece, 1) for piece in model.encode(text, out_type=str)), 0]
    assert ids(t, "das Haus") != ids(t.target, "das Haus") and t.target.target is t.target
    assert t.fingerprint != t.target.fingerprint  # by which tokens are kept
    assert t.decode(ids(t.target, "das Haus")) == "das Haus" and ids(t, ">>fra<< dog")[0] == t.id(">>fra<<")
    found, offsets = t.encode_with_offsets(" the  dog")
    assert [" the  dog"[a:b] for a, b in offsets][-1] == "g" and len(found) == len(offsets)
    t.save(tmp_path / "saved")
    assert not (tmp_path / "saved/tokenizer.json").exists()
    saved = load_tokenizer(tmp_path / "saved")
    assert saved.fingerprint == t.fingerprint and saved.target.fingerprint == t.target.fingerprint
    assert ids(saved.target, GERMAN) == ids(t.target, GERMAN)
    plain = load_tokenizer(tmp_path / "in").splitting(special_tokens=True)
    assert t.id(">>fra<<") not in ids(plain, ">>fra<<") and ids(plain.target, "</s>")[0] != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("source.spm", r"in: no source\.spm; a Marian tokenizer is read from source\.spm, target\.spm and vocab\.json"),
        ("separate_vocabs", "separate_vocabs=true is not supported"),
        ("unk", r"vocab\.json: no <unk> among its \d+ entries"),
        ("id", r"vocab\.json: '</s>': expected an id, found \"0\""),
    ],
)
def test_marian_files_that_are_refused(change, message, tmp_path):
    directory = marian(tmp_path / "in", separate_vocabs=change == "separate_vocabs")
    vocab = json.loads((directory / "vocab.json").read_text())
    if change == "source.spm":
        (directory / change).unlink()
    elif change == "unk":
        del vocab["<unk>"]
    elif change == "id":
        vocab["</s>"] = "0"
    (directory / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UserError, match=message):
        load_tokenizer(directory)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("mbart", {"src_lang": "de_DE"}),
        ("mbart50", {"src_lang": "de_DE", "tgt_lang": "en_XX"}),
        ("pegasus", {}),
        ("bart", {}),
    ],
)
def test_ids_are_those_of_transformers(name, config, tmp_path, transformers):
    if name == "bart":
        directory = byte_level(tmp_path / "in", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        (directory / "config.json").write_text('{"model_type": "bart"}')
    else:
        directory, _ = folder(tmp_path / "in", name, **config)
    found = assert_ids_of_transformers(transformers, directory, tmp_path, TEXTS, "the dog")
    assert found == CLASSES.get(name, "RobertaTokenizer")


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")  # whose results its ids do not depend on
def test_ids_of_marian_are_those_of_transformers(tmp_path, transformers):
    directory = marian(tmp_path / "in")
    for _ in range(2):  # the folder, and what we save of it
        theirs, ours = transformers.AutoTokenizer.from_pretrained(directory), load_tokenizer(directory)
        for text in TEXTS:
            assert ids(ours, text) == theirs(text).input_ids, text
            assert ids(ours, text, "the dog") == theirs(text, "the dog").input_ids, text
            assert ids(ours.target, text) == theirs(text_target=text).input_ids, text
        written = theirs(text_target=GERMAN).input_ids
        assert ours.decode(written) == theirs.decode(written, skip_special_tokens=True) == GERMAN
        directory = tmp_path / "saved"
        ours.save(directory)
        (directory / "config.json").write_text('{"model_type": "marian"}')
