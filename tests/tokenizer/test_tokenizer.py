"""Tokenizers: golden ids in every file format, special tokens, truncation and windows."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from helpers.tokenizer_folders import (
    FOLDERS,
    LOREM,
    byte_level,
    fairseq,
    folder,
    golden,
    ids,
    loaded,
    run,
    slow_files,
)

from jaxlm.errors import UserError
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture
def words(tmp_path: Path) -> Tokenizer:
    """BERT WordPiece in which every word of LOREM is one token, ids from 5 on in the order of appearance."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(LOREM.split())]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    return load_tokenizer(tmp_path / "words")


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


def test_fork_after_encoding_neither_warns_nor_hangs(shared_data):
    script = f"""
        import os
        from pathlib import Path
        from jaxlm.tokenizer.tokenizer import load_tokenizer
        t = load_tokenizer(Path({str(folder(shared_data, "bert-base-uncased"))!r}))
        texts = ["a dog and a fox"] * 1000
        before = len(t.encode(texts))
        child = os.fork()
        if not child:
            os._exit(0 if len(t.encode(texts)) == before else 1)
        print(os.waitpid(child, 0)[1])
    """
    assert run(script) == "0\n"


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
