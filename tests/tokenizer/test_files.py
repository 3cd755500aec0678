"""Tokenizers' files: saving and loading again, Transformers beside us, and files that are refused."""

from __future__ import annotations

import json
import re

import pytest
import sentencepiece
import tokenizers
from helpers.tokenizer_folders import FOLDERS, LOREM, byte_level, fairseq, folder, golden, ids, loaded, slow_files

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import load_tokenizer


@pytest.mark.parametrize("name", [*FOLDERS, "stories260k", "roberta", "xlmr"])
def test_save_and_load(shared_data, tmp_path, name):
    source = tmp_path / "source"
    if name == "roberta":
        byte_level(source, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    elif name == "xlmr":
        fairseq(source, shared_data)
    else:
        slow_files(folder(shared_data, name), source)
    before = load_tokenizer(source)
    before.save(tmp_path / "saved")
    after = load_tokenizer(tmp_path / "saved")
    assert after.fingerprint == before.fingerprint
    roles = ("pad_id", "cls_id", "sep_id", "mask_id", "bos_id", "eos_id", "unk_id", "vocab_size")
    assert all(getattr(after, role) == getattr(before, role) for role in roles)
    for text in (LOREM, "  two  spaces\nnew line", "Straße 今天 🙂", "<mask> [MASK] <extra_id_3> </s>"):
        assert ids(after, text, LOREM, max_length=20) == ids(before, text, LOREM, max_length=20)
    assert {path.name for path in source.iterdir()} - {"golden.json", "golden_tokenization.json"} <= {
        *(path.name for path in (tmp_path / "saved").iterdir()),
        *("golden_logits.npz", "config.json", "generation_config.json"),
    }


def test_unigram_scores_of_a_file_survive_saving(shared_data, tmp_path):
    """Bit for bit: the library's own reader of JSON changes the last bit of about one number in ten."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder(shared_data, "t5-base") / "spiece.model"))
    scores = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(2000)]
    tokenizers.Tokenizer(tokenizers.models.Unigram(scores, unk_id=2)).save(str(tmp_path / "tokenizer.json"))
    before = load_tokenizer(tmp_path)
    before.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == before.fingerprint
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text("utf-8"))
    assert [tuple(entry) for entry in saved["model"]["vocab"]] == scores


def test_fingerprint_tells_vocabularies_and_settings_apart(shared_data, tmp_path):
    prints = {loaded(folder(shared_data, name)).fingerprint for name in FOLDERS}
    changed = slow_files(folder(shared_data, "bert-base-uncased"), tmp_path / "cased")
    config = json.loads((changed / "tokenizer_config.json").read_text())
    (changed / "tokenizer_config.json").write_text(json.dumps({**config, "do_lower_case": False}))
    assert len(prints | {load_tokenizer(changed).fingerprint}) == len(FOLDERS) + 1


@pytest.fixture(params=["bert-base-uncased", "bert-base-cased", "gpt2", "t5-base", "mistral-v1", "roberta", "xlmr"])
def both(request, shared_data, tmp_path):
    """A tokenizer read from its slow files, and AutoTokenizer's reading of what it saves beside a config.json."""
    transformers = pytest.importorskip("transformers")
    name = request.param
    if name == "roberta":
        byte_level(tmp_path / "source", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    elif name == "xlmr":
        fairseq(tmp_path / "source", shared_data)
    else:
        slow_files(folder(shared_data, name), tmp_path / "source")
    ours = load_tokenizer(tmp_path / "source")
    ours.save(tmp_path / "saved")
    kind = {"xlmr": "xlm-roberta", "mistral-v1": "mistral"}.get(name, name.split("-")[0])
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": kind}))
    return ours, transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")


@pytest.mark.parity
def test_transformers_gives_the_same_ids(both, shared_data):
    ours, theirs = both
    texts = [text for text, _ in golden(folder(shared_data, "t5-base"))] + ["", LOREM, "[MASK] <mask> <extra_id_7>"]
    pairs = texts[::-1]
    assert len(theirs) == ours.vocab_size
    assert ours.pad_id == theirs.pad_token_id and ours.mask_id == theirs.mask_token_id
    assert ours.cls_id == theirs.cls_token_id and ours.eos_id == theirs.eos_token_id
    for second in (None, pairs):
        for max_length in (None, 6, 7, 12, 19, 40):
            options = {} if max_length is None else {"truncation": True, "max_length": max_length}
            expected = theirs(texts, second, **options)
            encoded = [result for [result] in ours.encode(texts, second, max_length=max_length)]
            assert [e.ids.tolist() for e in encoded] == expected["input_ids"]
            if "token_type_ids" in expected:
                assert [e.type_ids.tolist() for e in encoded] == expected["token_type_ids"]
            full = theirs(texts, second)["input_ids"]
            assert [e.truncated for e in encoded] == [max_length is not None and len(x) > max_length for x in full]


@pytest.mark.parity
def test_transformers_gives_the_same_windows(both):
    ours, theirs = both
    for second, strategy in ((None, True), (LOREM, "only_second")):
        text = LOREM if second is None else "Who sleeps?"
        for max_length, stride in ((24, 0), (30, 4), (27, 1)):
            options = {"max_length": max_length, "stride": stride, "return_overflowing_tokens": True}
            expected = theirs(text, second, truncation=strategy, **options)["input_ids"]
            if not isinstance(expected[0], list):
                expected = [expected]
            [windows] = ours.encode([text], second and [second], max_length=max_length, stride=stride)
            assert [window.ids.tolist() for window in windows] == expected


@pytest.mark.parity
def test_saved_classes_take_token_types_only_where_the_model_has_them(both):
    ours, theirs = both
    assert ("token_type_ids" in theirs("a", "b")) == (
        ours.cls_id is not None and ours.tokens([ours.cls_id]) == ["[CLS]"]
    )


# Bad input.


def test_no_tokenizer_files(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(
        UserError, match=r"no tokenizer; looked for tokenizer\.json, vocab\.txt.*found model\.safetensors"
    ):
        load_tokenizer(tmp_path)
    with pytest.raises(UserError, match="no tokenizer.*found nothing"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokenizer.json:1: not valid JSON"),
        ("[]", "tokenizer.json: expected a JSON object"),
        ('{"version": "1.0"}', "tokenizer.json: not a valid tokenizer.json"),
        (
            '{"version": "1.0", "model": {"type": "Unigram", "vocab": [3]}}',
            "tokenizer.json: not a valid tokenizer.json",
        ),
    ],
)
def test_corrupt_tokenizer_json(tmp_path, content, message):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        load_tokenizer(tmp_path)


def test_corrupt_files(tmp_path):
    (tmp_path / "spiece.model").write_bytes(b"\x0a\x05garbage")
    with pytest.raises(UserError, match=r"spiece\.model: not a SentencePiece model"):
        load_tokenizer(tmp_path)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"spiece\.model: a SentencePiece model without pieces"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text("{")
    (tmp_path / "merges.txt").write_text("a b")
    with pytest.raises(UserError, match=r"vocab\.json and merges\.txt: not a byte-level BPE vocabulary"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes(b"[UNK]\n\xff\n")
    with pytest.raises(UserError, match=r"vocab\.txt: byte 6 is not UTF-8"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{\n"a": }')
    with pytest.raises(UserError, match=r"tokenizer_config\.json:2: not valid JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("missing", ["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
def test_vocab_txt_without_special_token(tmp_path, missing):
    vocab = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"} - {missing}
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocab)))
    with pytest.raises(UserError, match=rf"vocab\.txt: no \[{missing[1:-1]}\] among its 4 lines"):
        load_tokenizer(tmp_path)


def test_class_that_needs_a_tokenizer_json(tmp_path):
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CamembertTokenizer"}')
    (tmp_path / "spiece.model").touch()
    with pytest.raises(UserError, match="tokenizer_class 'CamembertTokenizer'.*save_pretrained"):
        load_tokenizer(tmp_path)
