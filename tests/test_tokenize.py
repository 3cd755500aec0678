"""Tokenizers: golden ids in every file format, truncation and windows, saving, training, and errors."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from jaxlm.data.tokenize import Tokenizer, load_tokenizer
from jaxlm.data.train_tokenizer import train_wordpiece
from jaxlm.errors import UserError

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


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    """BERT WordPiece in which every word of LOREM is one token, ids from 5 on in the order of appearance."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(LOREM.split())]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    return load_tokenizer(tmp_path / "words")


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


# Ids.


@pytest.mark.parametrize("form", ["as is", "slow files"])
@pytest.mark.parametrize("name", [*FOLDERS, "stories260k"])
def test_golden_ids(shared_data, tmp_path, name, form):
    directory = folder(shared_data, name)
    tokenizer = loaded(directory if form == "as is" else slow_files(directory, tmp_path / "slow"))
    for text, expected in golden(directory):
        assert ids(tokenizer, text) == expected, text


@pytest.mark.parametrize("name", ["mistral-v1", "t5-base"])
def test_sentencepiece_ids_are_those_of_the_library(shared_data, name):
    """On German and Chinese text, and for BPE on Python source, full of runs of spaces (Unigram may break ties of
    punctuation otherwise)."""
    directory = folder(shared_data, name)
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(next(directory.glob("*.model"))))
    texts = ["", " ", "\n", "  a  b ", "\t\u3000x", "a\u0301 \u00a0b ﬁ ①"]
    for file in ("translation/multi30k_en_de/validation.de", "classification/tnews/validation.tsv"):
        texts += (shared_data / file).read_text("utf-8").split("\n")[:1000]
    if name == "mistral-v1":
        source = Path(textwrap.__file__).read_text("utf-8")
        texts += [source, *source.split("\n")]
    encoded = loaded(directory).encode(texts, special_tokens=False)
    for text, [result], expected in zip(texts, encoded, oracle.encode(texts), strict=True):
        assert result.ids.tolist() == expected, text


def test_vocab_size_and_special_ids(shared_data):
    expected = {  # size, then pad cls sep mask bos eos unk
        "bert-base-uncased": (30522, 0, 101, 102, 103, None, None, 100),
        "gpt2": (50257, None, None, None, None, 50256, 50256, 50256),
        "t5-base": (32100, 0, None, None, None, None, 1, 2),
        "mistral-v1": (32000, None, None, None, None, 1, 2, 0),
    }
    for name, row in expected.items():
        t = loaded(folder(shared_data, name))
        assert (t.vocab_size, t.pad_id, t.cls_id, t.sep_id, t.mask_id, t.bos_id, t.eos_id, t.unk_id) == row, name


def test_t5_sentinels(shared_data):
    t = loaded(folder(shared_data, "t5-base"))
    assert t.tokens([32099, 32000]) == ["<extra_id_0>", "<extra_id_99>"]
    assert ids(t, "<extra_id_0> house <extra_id_1>", special_tokens=False) == [32099, 629, 32098]


def test_xlm_roberta_ids_are_shifted_by_one(shared_data, tmp_path):
    oracle = fairseq(tmp_path / "xlmr", shared_data)
    t = load_tokenizer(tmp_path / "xlmr")
    assert (t.bos_id, t.pad_id, t.eos_id, t.unk_id, t.cls_id, t.sep_id) == (0, 1, 2, 3, 0, 2)
    assert t.mask_id == len(oracle) + 1 and t.vocab_size == len(oracle) + 2
    text, other = "Ein Hund läuft über die Straße.", "Zwei Männer"
    first, second = ([i + 1 for i in oracle.encode(x)] for x in (text, other))
    assert 3 not in first and ids(t, text) == [0, *first, 2]
    assert ids(t, text, other) == [0, *first, 2, 2, *second, 2]
    assert ids(t, "漢", special_tokens=False)[-1] == 3
    assert ids(t, "Hund <mask>", special_tokens=False)[-1] == t.mask_id


def test_byte_level_special_tokens_by_class_or_vocabulary(tmp_path):
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    plain = load_tokenizer(byte_level(tmp_path / "gpt2", ["<|endoftext|>"]))
    a, b = ids(plain, "the dog"), ids(plain, "a fox")
    assert plain.eos_id == 0 and plain.cls_id is None and plain.decode(a) == "the dog"
    assert ids(plain, "the dog", "a fox") == a + b
    for config in ({}, {"tokenizer_class": "RobertaTokenizer"}):
        t = load_tokenizer(byte_level(tmp_path / f"roberta{len(config)}", special, **config))
        first, second = (ids(t, text, special_tokens=False) for text in ("the dog", "a fox"))
        assert ids(t, "the dog", "a fox") == [0, *first, 2, 2, *second, 2]
        assert (t.cls_id, t.pad_id, t.sep_id, t.unk_id, t.mask_id) == (0, 1, 2, 3, 4)
        assert not t.encode(["the dog"], ["a fox"])[0][0].type_ids.any()
    assert ids(load_tokenizer(byte_level(tmp_path / "gpt3", special, tokenizer_class="GPT2Tokenizer")), "the")[0] != 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "[CLS] cafe 今 天 [SEP]"),
        ({"do_lower_case": False}, "[CLS] Café 今 天 [SEP]"),
        ({"strip_accents": False}, "[CLS] café 今 天 [SEP]"),
        ({"tokenize_chinese_chars": False}, "[CLS] cafe 今天 [SEP]"),
        ({"cls_token": {"content": "<b>"}, "sep_token": "<e>"}, "<b> cafe 今 天 <e>"),
        ({"pad_token": "[NEW]"}, None),
    ],
)
@pytest.mark.parametrize("form", ["vocab.txt", "tokenizer.json"])
def test_bert_settings(tmp_path, config, expected, form):
    """From tokenizer_config.json, which also overrules a tokenizer.json made with other settings."""
    vocab = "[PAD] [UNK] [CLS] [SEP] [MASK] <b> <e> cafe Café café 今 天 今天".split()
    config = {"tokenizer_class": "BertTokenizer", **config}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if form == "vocab.txt":
        (tmp_path / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    else:
        backend = tokenizers.Tokenizer(
            tokenizers.models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]")
        )
        backend.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        backend.save(str(tmp_path / "tokenizer.json"))
    if expected is None and form == "vocab.txt":
        with pytest.raises(UserError, match=r"vocab\.txt: no \[NEW\].*pad_token"):
            load_tokenizer(tmp_path)
        return
    t = load_tokenizer(tmp_path)
    if expected is None:
        assert t.pad_id == len(vocab) and t.vocab_size == len(vocab) + 1
    else:
        assert " ".join(t.tokens(ids(t, "Café 今天"))) == expected


def test_special_tokens_map_and_added_tokens(tmp_path):
    directory = byte_level(tmp_path / "gpt2", ["<|endoftext|>"], pad_token="<pad>", additional_special_tokens=["<x>"])
    size = len(json.loads((directory / "vocab.json").read_text()))
    (directory / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "<fill>", "lstrip": True}}))
    (directory / "added_tokens.json").write_text(json.dumps({"<sep>": size}))
    t = load_tokenizer(directory)
    assert t.tokens([size, size + 1, size + 2]) == ["<sep>", "<fill>", "<x>"]
    assert t.pad_id == size + 1 and t.vocab_size == size + 3
    assert ids(t, "<sep><x>") == [size, size + 2]
    (directory / "added_tokens.json").write_text(json.dumps({"<sep>": size + 7}))
    with pytest.raises(UserError, match=rf"'<sep>' should have id {size + 7}.* gives it {size}"):
        load_tokenizer(directory)


def test_own_truncation_and_padding_of_a_file_are_reset(shared_data, tmp_path):
    source = folder(shared_data, "bert-base-uncased")
    backend = tokenizers.Tokenizer.from_file(str(source / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    text, expected = golden(source)[0]
    t = load_tokenizer(tmp_path)
    assert ids(t, text) == expected
    t.save(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "tokenizer.json").read_text("utf-8"))
    assert saved["truncation"] is None and saved["padding"] is None


def test_decode_and_tokens(shared_data):
    t = loaded(folder(shared_data, "bert-base-uncased"))
    encoded = t.encode(["Walking, dogs"])[0][0].ids
    assert t.tokens(encoded) == ["[CLS]", "walking", ",", "dogs", "[SEP]"]
    assert t.decode(encoded) == "walking, dogs"
    assert t.decode(encoded, skip_special_tokens=False) == "[CLS] walking, dogs [SEP]"
    assert t.tokens([99999]) == ["<id 99999>"]


# Truncation and windows.


def test_empty_texts_and_no_texts(words):
    assert ids(words, "") == [2, 3]
    assert ids(words, "", "the") == [2, 3, 5, 3]
    assert words.encode([]) == [] and words.encode([], []) == []
    [[window]] = words.encode([""], max_length=8, stride=2)
    assert window.ids.tolist() == [2, 3] and not window.truncated


def test_single_truncation(words):
    whole = ids(words, LOREM)
    n = len(whole)
    for max_length in (3, 10, n - 1, n, n + 1):
        [[encoded]] = words.encode([LOREM], max_length=max_length)
        assert encoded.truncated == (max_length < n)
        kept = whole if max_length >= n else [*whole[: max_length - 1], 3]
        assert encoded.ids.tolist() == kept


@pytest.mark.parametrize(
    ("first", "second", "max_length", "kept"),
    [
        (6, 4, 13, (6, 4)),  # fits
        (6, 4, 12, (5, 4)),  # the longer loses the first token
        (6, 4, 10, (4, 3)),  # both cut: the longer keeps the odd one
        (4, 6, 10, (3, 4)),
        (5, 5, 10, (3, 4)),
        (2, 9, 9, (2, 4)),  # the shorter is never cut while it takes less than half
        (9, 2, 9, (4, 2)),
        (0, 9, 9, (0, 6)),
    ],
)
def test_pair_truncation_cuts_the_longest_first(words, first, second, max_length, kept):
    text, other = (" ".join(LOREM.split()[:n]) for n in (first, second))
    [[encoded]] = words.encode([text], [other], max_length=max_length)
    a, b = (ids(words, x, special_tokens=False) for x in (text, other))
    assert encoded.ids.tolist() == [2, *a[: kept[0]], 3, *b[: kept[1]], 3]
    assert encoded.type_ids.tolist() == [0] * (kept[0] + 2) + [1] * (kept[1] + 1)
    assert encoded.truncated == (kept != (first, second))


def test_truncation_side_left(tmp_path, words):
    words.save(tmp_path / "left")
    config = json.loads((tmp_path / "left" / "tokenizer_config.json").read_text())
    (tmp_path / "left" / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": "left"}))
    left = load_tokenizer(tmp_path / "left")
    whole = ids(words, LOREM)
    assert ids(left, LOREM, max_length=6) == [2, *whole[-5:-1], 3]
    assert left.fingerprint != words.fingerprint


@pytest.mark.parametrize("stride", [0, 1, 3, 5])
@pytest.mark.parametrize("pair", [False, True])
def test_windows_cover_the_text_and_overlap_by_stride(words, stride, pair):
    first = "the fox" if pair else None
    body = ids(words, LOREM, special_tokens=False)
    head = [2, *ids(words, "the fox", special_tokens=False), 3] if pair else [2]
    max_length = len(head) + 7
    [windows] = words.encode([first or LOREM], [LOREM] if pair else None, max_length=max_length, stride=stride)
    assert len(windows) > 2 and all(window.truncated for window in windows)
    covered: list[int] = []
    for i, window in enumerate(windows):
        *content, sep = window.ids.tolist()
        assert content[: len(head)] == head and sep == 3
        content = content[len(head) :]
        assert len(content) == 6 or i == len(windows) - 1
        if i:
            assert content[:stride] == covered[len(covered) - stride :]
            content = content[stride:]
        assert content, "a window of nothing new"
        covered += content
    assert covered == body


def test_window_of_a_text_that_fits(words):
    [[window]] = words.encode(["the fox"], ["runs away"], max_length=7, stride=1)
    assert not window.truncated and window.ids.tolist() == ids(words, "the fox", "runs away")


def test_windows_behind_a_first_text_that_leaves_no_room(words):
    """It is cut to half the room, or to what a short second text leaves."""
    body = ids(words, LOREM, special_tokens=False)
    [windows] = words.encode([LOREM], [LOREM], max_length=13, stride=2)
    assert all(window.ids.tolist()[:7] == [2, *body[:5], 3] for window in windows)
    assert [window.ids.tolist()[7:-1] for window in windows][:2] == [body[:5], body[3:8]]
    [narrow, *_] = words.encode([LOREM], [LOREM], max_length=13, stride=7)[0]
    assert narrow.ids.tolist() == [2, *body[:2], 3, *body[:8], 3]
    [[window]] = words.encode([LOREM], ["runs"], max_length=13, stride=2)
    assert window.ids.tolist() == [2, *body[:9], 3, *ids(words, "runs", special_tokens=False), 3] and window.truncated


# Saving.


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


# Training.


def test_train_wordpiece(shared_data, tmp_path):
    texts = (shared_data / "classification/sst2/validation.tsv").read_text("utf-8").lower().split("\n")
    t = train_wordpiece(iter(texts), vocab_size=800)
    assert t.tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (t.pad_id, t.unk_id, t.cls_id, t.sep_id, t.mask_id) == (0, 1, 2, 3, 4)
    assert t.vocab_size == 800
    assert t.tokens(ids(t, "The Movie!", "bad")) == ["[CLS]", "the", "movie", "!", "[SEP]", "bad", "[SEP]"]
    assert t.decode(ids(t, "an unforgettable story")) == "an unforgettable story"
    assert "##" in "".join(t.tokens(ids(t, "unforgettable")))
    t.save(tmp_path)
    assert load_tokenizer(tmp_path).fingerprint == t.fingerprint
    (tmp_path / "tokenizer.json").unlink()  # vocab.txt alone says the same
    assert ids(load_tokenizer(tmp_path), "An Unforgettable Story", max_length=9) == ids(
        t, "An Unforgettable Story", max_length=9
    )


def test_train_wordpiece_options():
    texts = [
        "Apple apple APPLE banana",
        "Banana cherry 漢",
        "X" * 70 + " " + "".join(map(chr, range(0x4E00, 0x4E00 + 99))),
    ]
    cased = train_wordpiece(texts, vocab_size=100, lowercase=False)
    assert cased.tokens(ids(cased, "Apple", special_tokens=False)) != ["apple"]
    once = train_wordpiece(texts, vocab_size=100, min_frequency=1)
    twice = train_wordpiece(texts, vocab_size=100)
    assert twice.tokens(ids(twice, "Apple banana", special_tokens=False)) == ["apple", "banana"]
    assert len(ids(twice, "cherry")) > len(ids(once, "cherry")) == 3
    # Half of the vocabulary is kept from rare characters, whose words are unknown.
    assert twice.vocab_size <= 100 and ids(twice, chr(0x4E00 + 98), special_tokens=False) == [twice.unk_id]


def test_train_wordpiece_is_deterministic(shared_data):
    """In other processes too: the library numbers characters in the order of a randomly seeded hash table."""
    script = f"""
        from pathlib import Path
        from jaxlm.data.train_tokenizer import train_wordpiece
        texts = Path({str(shared_data / "classification/sst2/validation.tsv")!r}).read_text("utf-8").split("\\n")
        print(train_wordpiece(texts, vocab_size=600).fingerprint)
    """
    assert len({run(script) for _ in range(3)}) == 1


def test_train_wordpiece_refuses():
    with pytest.raises(UserError, match="no word in the texts"):
        train_wordpiece(["", "  \n"], vocab_size=100)
    with pytest.raises(UserError, match="vocab_size: 9 is too small"):
        train_wordpiece(["a b c"], vocab_size=9)


# Processes.


def run(script: str) -> str:
    """Runs Python source in a process of its own, without a setting for threads; its standard error must be empty."""
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_fork_after_encoding_neither_warns_nor_hangs(shared_data):
    script = f"""
        import os
        from pathlib import Path
        from jaxlm.data.tokenize import load_tokenizer
        t = load_tokenizer(Path({str(folder(shared_data, "bert-base-uncased"))!r}))
        texts = ["a dog and a fox"] * 1000
        before = len(t.encode(texts))
        child = os.fork()
        if not child:
            os._exit(0 if len(t.encode(texts)) == before else 1)
        print(os.waitpid(child, 0)[1])
    """
    assert run(script) == "0\n"


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
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "AlbertTokenizer"}')
    (tmp_path / "spiece.model").touch()
    with pytest.raises(UserError, match="tokenizer_class 'AlbertTokenizer'.*save_pretrained"):
        load_tokenizer(tmp_path)


def test_lengths_without_room(words):
    with pytest.raises(UserError, match="max_length: 2 leaves no room .*at least 3"):
        words.encode(["the"], max_length=2)
    with pytest.raises(UserError, match="max_length: 4 leaves no room .*at least 5"):
        words.encode(["the"], ["fox"], max_length=4)
    with pytest.raises(UserError, match="stride: 8 .*expected 0 to 7"):
        words.encode(["the"], max_length=10, stride=8)
    with pytest.raises(UserError, match="stride: 7 .*expected 0 to 6"):
        words.encode(["the"], ["fox"], max_length=10, stride=7)
    with pytest.raises(UserError, match="stride: -1"):
        words.encode(["the"], max_length=10, stride=-1)
