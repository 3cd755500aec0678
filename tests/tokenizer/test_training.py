"""Training tokenizers: ids, round trips, determinism and bounded memory of every type and family; refusals."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from helpers.hard_texts import TRICKY
from helpers.tokenizer_folders import ids

from jaxlm.errors import UserError
from jaxlm.setup.tokenizer_training import read_texts
from jaxlm.tokenizer import sentencepiece_training, training
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.families import CHOICES
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer

SIZE = 1200
KINDS = [(kind, family) for kind, families in CHOICES.items() for family in families]
LOSSLESS = [(kind, family) for kind, family in KINDS if kind in ("byte_bpe", "char") or (family == "llama")]
SPECIAL = "[MASK] a <mask> b</s> <pad><extra_id_0>x <extra_id_99><|endoftext|>y <unk>"


@pytest.fixture(scope="session")
def corpus(shared_data) -> list[str]:
    """Web pages, Chinese poems and source code."""
    pages = read_texts([shared_data / "lm/c4_demo/train.jsonl"])
    poems = read_texts([shared_data / "lm/poetry_tang/validation.jsonl"])
    source = Path(textwrap.__file__).read_text("utf-8").split("\n")
    return [*(next(pages) for _ in range(40)), *(next(poems) for _ in range(40)), *source]


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory) -> Callable[[str, str], tuple[Tokenizer, Path]]:
    """The tokenizer of a type and family, trained on the corpus, and a directory where it was saved."""

    @functools.cache
    def train(kind: str, family: str) -> tuple[Tokenizer, Path]:
        texts = [*corpus, *TRICKY] if kind == "char" else corpus
        size = {} if kind == "char" else {"vocab_size": SIZE}
        settings = TokenizerTrainingConfig(type=kind, family=family, **size)
        tokenizer = training.train_tokenizer(iter(texts), settings)
        directory = tmp_path_factory.mktemp(f"{kind}-{family}")
        tokenizer.save(directory)
        return tokenizer, directory

    return train


def settings(kind: str, **options) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(type=kind, **options)


# Special tokens and vocabularies.

HEADS = {
    "bert": (["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}),
    "t5": (["<pad>", "</s>", "<unk>"], {"pad": 0, "eos": 1, "unk": 2}),
    "llama": (["<unk>", "<s>", "</s>"], {"unk": 0, "bos": 1, "eos": 2}),
    "gpt2": (["<|endoftext|>"], {"bos": 0, "eos": 0, "unk": 0}),
    "roberta": (
        ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 4},
    ),
    "xlm-roberta": (
        ["<s>", "<pad>", "</s>", "<unk>"],
        {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": SIZE - 1},
    ),
}
AROUND = {  # special tokens around one text and around two
    "bert": ("[CLS] A [SEP]", "[CLS] A [SEP] B [SEP]"),
    "t5": ("A </s>", "A </s> B </s>"),
    "llama": ("<s> A", "<s> A <s> B"),
    "gpt2": ("A", "A B"),
    "roberta": ("<s> A </s>", "<s> A </s> </s> B </s>"),
    "xlm-roberta": ("<s> A </s>", "<s> A </s> </s> B </s>"),
}


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_special_tokens(trained, kind, family):
    t, _ = trained(kind, family)
    tokens, roles = HEADS[family]
    if (kind, family) == ("char", "gpt2"):  # a character that was never seen needs a token of its own
        tokens, roles = ["<unk>", "<|endoftext|>"], {"unk": 0, "bos": 1, "eos": 1}
    assert t.tokens(range(len(tokens))) == tokens
    found = {role: getattr(t, f"{role}_id") for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")}
    assert {role: i for role, i in found.items() if i is not None} == roles
    assert kind == "char" or t.vocab_size == SIZE
    if family == "t5":
        assert t.tokens([t.vocab_size - 1, t.vocab_size - 100]) == ["<extra_id_0>", "<extra_id_99>"]
        assert t.vocab_size - 2 in ids(t, "a<extra_id_1>b")
    for pattern, pair in zip(AROUND[family], (None, "b"), strict=True):
        plain = {"A": ids(t, "a", special_tokens=False), "B": ids(t, "b", special_tokens=False)}
        expected = [i for part in pattern.split() for i in plain.get(part) or [t._backend.token_to_id(part)]]
        assert ids(t, "a", pair) == expected
    if family in ("bert", "roberta", "t5", "xlm-roberta"):
        assert t.encode(["a"], ["b"])[0][0].type_ids.any() == (family == "bert")


@pytest.mark.parametrize(("kind", "default"), [(kind, families[0]) for kind, families in CHOICES.items()])
def test_default_family_and_other_names(corpus, trained, kind, default):
    same = {"bert": "electra", "t5": "mt5", "llama": "mistral", "gpt2": None}[default]
    size = {} if kind == "char" else {"vocab_size": SIZE}
    texts = [*corpus, *TRICKY] if kind == "char" else corpus
    other = training.train_tokenizer(texts, settings(kind, family=same, **size))
    assert other.fingerprint == trained(kind, default)[0].fingerprint


@pytest.mark.parametrize(("kind", "family"), KINDS)
def test_saved_directory_gives_the_same_ids(trained, kind, family):
    """Read by jaxlm, and tokenizer.json by itself."""
    t, directory = trained(kind, family)
    loaded = load_tokenizer(directory)
    assert loaded.fingerprint == t.fingerprint and loaded.vocab_size == t.vocab_size
    bare = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in [*TRICKY, SPECIAL]:
        assert ids(t, text, "b") == ids(loaded, text, "b") == bare.encode(text, "b").ids


@pytest.mark.parametrize(("kind", "family"), [*LOSSLESS])
def test_lossless_types_give_the_text_back(trained, kind, family):
    t, _ = trained(kind, family)
    for text in TRICKY:
        encoded = ids(t, text)
        assert t.decode(encoded) == text
        assert t.unk_id not in encoded


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_t5_normalizes_and_knows_its_characters(trained, kind):
    t, _ = trained(kind, "t5")
    assert t.decode(ids(t, "ﬁrst  of\nall ")) == "first of all"
    assert t.unk_id in ids(t, "🙂") and t.unk_id not in ids(t, "hello world")


@pytest.mark.parametrize(
    ("kind", "family", "files"),
    [
        ("wordpiece", "bert", {"vocab.txt"}),
        ("unigram", "t5", {"spiece.model"}),
        ("bpe", "llama", {"tokenizer.model"}),
        ("unigram", "xlm-roberta", {"sentencepiece.bpe.model"}),
        ("byte_bpe", "gpt2", {"vocab.json", "merges.txt"}),
        ("byte_bpe", "roberta", {"vocab.json", "merges.txt"}),
        ("char", "gpt2", set()),
    ],
)
def test_vocabulary_files_are_kept_and_say_the_same(trained, tmp_path, kind, family, files):
    t, directory = trained(kind, family)
    common = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    assert {path.name for path in directory.iterdir()} == common | files
    if files:
        shutil.copytree(directory, tmp_path / "slow")
        (tmp_path / "slow" / "tokenizer.json").unlink()
        slow = load_tokenizer(tmp_path / "slow")
        for text in TRICKY:
            assert ids(slow, text, "b") == ids(t, text, "b")


def test_bpe_ids_are_those_of_the_sentencepiece_library(trained, corpus):
    t, directory = trained("bpe", "llama")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    texts = [*TRICKY, *corpus, "\n".join(corpus[-300:])]
    assert [ids(t, text, special_tokens=False) for text in texts] == oracle.encode(texts)
    assert "▁▁▁▁" in t.tokens(ids(t, "    return x"))  # indentation is worth tokens


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_llama_splits_numbers_into_digits(kind, corpus):
    t = training.train_tokenizer([*corpus, *["2024"] * 500], settings(kind, family="llama", vocab_size=SIZE))
    assert t.tokens(ids(t, "2024"))[-4:] == ["2", "0", "2", "4"]


@pytest.mark.parity
@pytest.mark.parametrize(("kind", "family"), KINDS)
@pytest.mark.parametrize("beside", ["nothing", "a model"])
def test_transformers_gives_the_same_ids(trained, tmp_path, kind, family, beside):
    transformers = pytest.importorskip("transformers")
    t, directory = trained(kind, family)
    if beside == "a model":
        directory = shutil.copytree(directory, tmp_path / "model")
        (directory / "config.json").write_text(json.dumps({"model_type": family}))
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert len(theirs) == t.vocab_size
    for role in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"):
        assert getattr(theirs, f"{role}_token_id") == getattr(t, f"{role}_id")
    texts = [*TRICKY, SPECIAL]
    for pairs in (None, texts[::-1]):
        expected = theirs(texts, pairs)
        encoded = [e for [e] in t.encode(texts, pairs)]
        assert [e.ids.tolist() for e in encoded] == expected["input_ids"]
        if "token_type_ids" in expected:
            assert [e.type_ids.tolist() for e in encoded] == expected["token_type_ids"]
        for e in encoded:
            assert theirs.decode(e.ids, skip_special_tokens=True) == t.decode(e.ids)
    assert ("token_type_ids" in theirs("a", "b")) == (family == "bert")


# What is learned.


def test_wordpiece_options_are_those_of_the_settings():
    texts = ["Apple Apple apple banana", "Banana cherry"]
    train = training.train_tokenizer
    t = train(texts, settings("wordpiece", vocab_size=100))
    assert t.tokens(ids(t, "Apple BANANA", special_tokens=False)) == ["apple", "banana"]
    assert len(ids(t, "cherry", special_tokens=False)) > 1
    t = train(texts, settings("wordpiece", vocab_size=100, lowercase=False, min_frequency=1))
    assert t.tokens(ids(t, "Apple banana cherry", special_tokens=False)) == ["Apple", "banana", "cherry"]
    with pytest.raises(UserError, match="no word in the texts"):
        train(["", " \n", "x" * 101], settings("wordpiece"))


def test_byte_bpe_learns_words_with_their_space():
    texts = ["the cat", "the cat", "a dog"]
    t = training.train_tokenizer(texts, settings("byte_bpe", vocab_size=400))
    assert t.tokens(ids(t, "the cat")) == ["the", "Ġcat"]
    assert len(ids(t, " dog")) > 1
    t = training.train_tokenizer(texts, settings("byte_bpe", vocab_size=400, min_frequency=1))
    assert t.tokens(ids(t, " dog")) == ["Ġdog"]


def test_char():
    texts = ["hello", "world ☃"]
    t = training.train_tokenizer(texts, settings("char"))
    assert t.tokens(range(t.vocab_size)) == ["<unk>", "<|endoftext|>", "\n", " ", *"dehlorw☃"]
    assert t.tokens(ids(t, "low\n\r")) == ["l", "o", "w", "\n", "<unk>"]
    few = training.train_tokenizer(texts, settings("char", vocab_size=6))
    assert few.tokens(range(few.vocab_size)) == ["<unk>", "<|endoftext|>", "\n", " ", "l", "o"]
    assert t.tokens(ids(t, "e\u0301")) == ["e", "<unk>"]  # a code point, not what looks like one character


def test_char_keeps_every_character_of_a_large_alphabet_unless_told():
    """The default size of a vocabulary is not meant for it."""
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))
    assert training.train_tokenizer([text], settings("char")).vocab_size == 9003
    assert training.train_tokenizer([text], settings("char", vocab_size=8000)).vocab_size == 8000


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_learns_from_long_texts(kind, corpus):
    """Which the library itself leaves out without a word; line feeds never become part of a token."""
    text = "\n".join(corpus)
    t = training.train_tokenizer([text], settings(kind, family="llama", vocab_size=1000))
    assert t.tokens(ids(t, "the and", special_tokens=False)) == ["▁the", "▁and"]
    assert not any("\n" in token for token in t.tokens(range(t.vocab_size)))


def test_pieces_of_text_lose_nothing():
    lines = ["".join(random.Random(seed).choices("abc   ", k=3000)) for seed in (0, 1)]
    pieces = list(sentencepiece_training._pieces(["\n".join(lines)]))
    assert max(map(len, pieces)) <= 256 and len(pieces) > 20
    cut = next(n for n in range(len(pieces)) if " ".join(pieces[:n]) == lines[0])  # cut at a space, which is left out
    assert " ".join(pieces[cut:]) == lines[1]
    pieces = list(sentencepiece_training._pieces(["今天" * 300, "", "x\n\ny"]))
    assert "".join(pieces) == "今天" * 300 + "xy" and max(map(len, pieces)) == 256 and pieces[-2:] == ["x", "y"]


@pytest.mark.parametrize(("kind", "family"), [("unigram", "t5"), ("bpe", "llama")])
def test_rare_and_reserved_characters_cost_no_text(kind, family, corpus):
    """Half of the vocabulary, at most, goes to characters; the library skips texts with NUL or U+2585."""
    alphabet = iter(map(chr, range(0x4E00, 0x4E00 + 9999)))
    texts = [text.replace(" ", "\0") + f"\u2585{next(alphabet)}" for text in corpus[:40] + corpus[80:]]
    t = training.train_tokenizer(texts, settings(kind, family=family, vocab_size=800))
    assert t.tokens(ids(t, "the and", special_tokens=False)) == ["▁the", "▁and"]
    assert t.vocab_size == 800


# The same texts, the same files.


def test_deterministic_byte_for_byte(shared_data):
    """In another process too: hash tables are seeded at random. Sampling included."""
    script = f"""
        import functools, hashlib, tempfile
        from pathlib import Path
        from jaxlm.setup.tokenizer_training import train_to_directory
        from jaxlm.tokenizer.config import TokenizerTrainingConfig
        from jaxlm.tokenizer import training, word_counts
        word_counts._BATCH = 50_000
        training.count_words = functools.partial(word_counts.count_words, most=3000)
        for kind in ("wordpiece", "unigram", "bpe", "byte_bpe", "char"):
            with tempfile.TemporaryDirectory() as folder:
                settings = TokenizerTrainingConfig(type=kind, vocab_size=1000)
                output = Path(folder) / "out"
                files = [{str(shared_data / "lm/c4_demo/train.jsonl")!r}]
                train_to_directory(files, output, settings, max_sentences=500)
                for path in sorted(output.iterdir()):
                    print(kind, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    """
    environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
    outputs = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env={**environment, "PYTHONHASHSEED": seed}
        )
        assert done.returncode == 0 and done.stderr == "", done.stderr
        outputs.add(done.stdout)
    assert len(outputs) == 1 and outputs.pop().count("\n") == 20


# Refusals.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "wordpiece", "vocab_size": 63}, "vocab_size: 63 .* at least 64"),
        ({"type": "unigram", "vocab_size": 166}, "vocab_size: 166 .*unigram.*t5; expected at least 167"),
        ({"type": "bpe", "vocab_size": 100}, "vocab_size: 100 .*bpe.*llama; expected at least 323"),
        ({"type": "bpe", "vocab_size": 68, "family": "xlm-roberta"}, "expected at least 69"),
        ({"type": "byte_bpe", "vocab_size": 256}, "vocab_size: 256 .*256 bytes.*gpt2; expected at least 257"),
        ({"type": "byte_bpe", "vocab_size": 358, "family": "t5"}, "expected at least 359"),
        ({"type": "char", "vocab_size": 6, "family": "bert"}, "vocab_size: 6 .*bert; expected at least 7, or none"),
        (
            {"type": "bpe", "family": "llamma"},
            "no special tokens 'llamma' for type bpe; .*did you mean 'llama'",
        ),
        ({"type": "wordpiece", "family": "t5"}, "family: no special tokens 't5' for type wordpiece; expected bert"),
    ],
)
def test_settings_that_do_not_work(options, message):
    with pytest.raises(UserError, match=message):
        training.train_tokenizer(["some text"], TokenizerTrainingConfig(**options))


@pytest.mark.parametrize("kind", list(CHOICES))
def test_the_smallest_vocabulary_named_works_and_no_text_does_not(kind):
    smallest = {"wordpiece": 64, "unigram": 167, "bpe": 323, "byte_bpe": 257, "char": 6}[kind]
    options = settings(kind, vocab_size=smallest)
    assert training.train_tokenizer(["some text, and some more"] * 9, options).vocab_size <= smallest
    with pytest.raises(UserError, match="in the texts to train|no text to train"):
        training.train_tokenizer(iter(["", ""]), options)
