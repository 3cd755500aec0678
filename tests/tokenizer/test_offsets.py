"""Character offsets of tokens, in the text as it was given."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest
import sentencepiece
from helpers.hard_texts import TRICKY
from helpers.tokenizer_folders import LOREM, byte_level, fairseq, folder, loaded

from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer
from jaxlm.tokenizer.training import train_tokenizer

TRAINED = {"wordpiece": "bert", "unigram": "t5", "bpe": "llama", "byte_bpe": "gpt2", "char": "bert"}
FILES = (
    "bert-base-uncased",
    "bert-base-cased",
    "bert-base-chinese",
    "gpt2",
    "t5-base",
    "mistral-v1",
    "xlmr",
    "roberta",
)
TEXTS = [
    *TRICKY,
    "\tTab\there\r\nnext  line ",
    "🙂🙂 a👩‍👩‍👧b ❤️",
    "cafe\u0301 e\u0301\u0301 naïve İstanbul ẞ",
    "½ … ﬁ ＡＢ\u3000ｃ，㍿",
    "שלום עולם مرحبا بِكَ",
    "我爱北京 天安门。「你好」",
    "x\u00a0y\u200bz\ufeffw\u0007v",
    "ㄱ각한국 \u1112\u1161\u11ab",
    "\u0301abc \u0301 d",
    "a▁b",
]


@pytest.fixture(scope="module", params=[*TRAINED, *FILES])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    name, directory = request.param, tmp_path_factory.mktemp("tokenizer") / "files"
    if name in TRAINED:
        options = TokenizerTrainingConfig(type=name, family=TRAINED[name], vocab_size=500)
        return train_tokenizer([LOREM, *TEXTS[1:], "".join(map(chr, range(33, 127)))], options)
    if name == "roberta":
        return load_tokenizer(byte_level(directory, ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], add_prefix_space=True))
    shared_data = request.getfixturevalue("shared_data")
    if name == "xlmr":
        fairseq(directory, shared_data)
        return load_tokenizer(directory)
    return loaded(folder(shared_data, name))


def test_tokens_know_their_characters(tokenizer):
    """Ids are those of `encode`; a token that decodes to text stands for that text; nothing visible is lost."""
    for text in TEXTS:
        ids, offsets = tokenizer.encode_with_offsets(text)
        [[encoded]] = tokenizer.encode([text], special_tokens=False)
        assert ids.dtype == np.int32 and ids.tolist() == encoded.ids.tolist()
        assert offsets.dtype == np.int64 and offsets.shape == (len(ids), 2)
        assert (offsets[:, 0] <= offsets[:, 1]).all() and (np.diff(offsets[:, 0]) >= 0).all(), text
        assert (offsets >= 0).all() and (offsets <= len(text)).all()
        for i, (begin, end) in enumerate(offsets):
            covered = text[begin:end]
            assert covered == covered.strip(), (text, covered)
            shared = (offsets == offsets[i]).all(axis=1)  # pieces of one character
            token = tokenizer.decode(ids[shared], skip_special_tokens=False).strip().removeprefix("##")
            if covered and tokenizer.unk_id not in ids[shared] and shared.sum() == 1 and "\ufffd" not in token:
                assert _folded(token) == _folded(covered), (text, token, covered)
        seen = set[int]().union(*(range(begin, end) for begin, end in offsets))
        lost = {text[i] for i in range(len(text)) if i not in seen} - {"▁"}
        # What a normalizer deletes: control characters, and a mark that stands behind nothing.
        assert all(c.isspace() or unicodedata.category(c)[0] in "CM" for c in lost), (text, lost)


def _folded(text: str) -> str:
    """Without what normalizers change: case, marks, compatible forms, characters of no width."""
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).lower()).replace("▁", "")
    return "".join(c for c in plain if unicodedata.category(c)[0] not in "MC" and not c.isspace())


def test_pieces_and_marks(shared_data):
    """Bytes of one emoji share it; a mark goes with its letter; the space before a word is not its own."""
    gpt2, bert, t5, llama = (
        load_tokenizer(folder(shared_data, name)) for name in ("gpt2", "bert-base-uncased", "t5-base", "mistral-v1")
    )
    assert gpt2.encode_with_offsets(" 👩 ok")[1].tolist() == [[1, 2], [1, 2], [3, 5]]
    assert bert.encode_with_offsets("\tcafe\u0301\r\nx")[1].tolist() == [[1, 6], [8, 9]]
    assert t5.encode_with_offsets("cafe\u0301  ½")[1].tolist() == [[0, 5], [7, 8], [7, 8], [7, 8]]
    assert llama.encode_with_offsets("hi 👩 שלום")[1].tolist()[:6] == [[0, 2], [3, 3], [3, 4], [3, 4], [3, 4], [3, 4]]
    for each in (gpt2, bert, t5, llama):
        assert each.encode_with_offsets("")[1].shape == (0, 2)


@pytest.mark.parametrize("name", ["t5-base", "mistral-v1"])
def test_equal_to_sentencepiece(shared_data, name):
    """The library's own spans, which count bytes and take the space before a word along."""
    tokenizer = loaded(folder(shared_data, name))
    [model] = folder(shared_data, name).glob("*.model")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    compared = 0
    for text in TEXTS:
        if not text.strip():
            continue
        ids, offsets = tokenizer.encode_with_offsets(text)
        pieces = processor.encode(text, return_type="proto").pieces
        if [piece.id for piece in pieces] != ids.tolist():
            continue  # marks behind white space: see tokenizer/sentencepiece.py
        places = np.cumsum([0, *(len(character.encode()) for character in text)]).tolist()
        for piece, (begin, end) in zip(pieces, offsets.tolist(), strict=True):
            if not piece.piece.strip("▁") or (offsets == [begin, end]).all(axis=1).sum() > 1:
                continue  # spaces, and pieces of one character
            theirs = text[places.index(piece.begin) : places.index(piece.end)]
            assert _solid(theirs) == _solid(text[begin:end]), (text, piece.piece)
            compared += 1
    assert compared > 80


def _solid(text: str) -> str:
    """Without the characters of no width, which the library counts to the token before or after them."""
    return "".join(c for c in text if not c.isspace() and unicodedata.category(c) not in ("Cf", "Cc"))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-cased", "bert-base-chinese", "gpt2", "t5-base"])
def test_equal_to_transformers(shared_data, name):
    """`return_offsets_mapping` of the fast tokenizers, but for white space and uncovered combining marks."""
    from transformers import AutoTokenizer

    reference, tokenizer = (
        AutoTokenizer.from_pretrained(shared_data / "tokenizers" / name),
        loaded(folder(shared_data, name)),
    )
    for text in TEXTS:
        theirs = reference(text, return_offsets_mapping=True, add_special_tokens=False)
        ids, offsets = tokenizer.encode_with_offsets(text)
        assert ids.tolist() == theirs["input_ids"]
        pieces = reference.convert_ids_to_tokens(theirs["input_ids"])
        for piece, (begin, end), (b, e) in zip(pieces, offsets.tolist(), theirs["offset_mapping"], strict=True):
            ours = text[begin:end]
            if piece == "▁":
                assert ours in ("", "▁") and b <= begin <= e
            else:
                # No mark behind the letter is left over; otherwise the same characters.
                assert ours == text[b:e].strip() or (begin == b and unicodedata.category(ours[-1])[0] == "M"), text
