"""Training tokenizers: ids, round trips, determinism, bounded memory of every type and family; inputs; the command."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import sentencepiece
import tokenizers

from jaxlm.cli import main
from jaxlm.config import TokenizerTrainingConfig
from jaxlm.data import train_sentencepiece, train_tokenizer, word_counts
from jaxlm.data.text_inputs import input_files, read_texts
from jaxlm.data.tokenize import Tokenizer, load_tokenizer
from jaxlm.data.tokenizer_families import CHOICES
from jaxlm.errors import RunFailure, UserError

SIZE = 1200
KINDS = [(kind, family) for kind, families in CHOICES.items() for family in families]
LOSSLESS = [(kind, family) for kind, family in KINDS if kind in ("byte_bpe", "char") or (family == "llama")]
TRICKY = [
    "",
    " ",
    "hello world",
    " leading and trailing ",
    "two  spaces   three\t\ttabs",
    "café naïve Straße a\u0301",
    "今天天氣很好，去公园。",
    "🙂 👨‍👩‍👧 emoji",
    "def f(x):\n    if x:\n\n        return {'a': [1, 22, 333]}\n",
    "carriage\r\nreturn",
    "ﬁ ① ½ \u00a0nbsp\u3000wide \u2028 \u200b",
    "ЦИТАТА 123456",
    "x" * 300,
    "it's they'll WE'VE do n't , spaced . out ?",
]
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
        tokenizer = train_tokenizer.train_tokenizer(iter(texts), settings)
        directory = tmp_path_factory.mktemp(f"{kind}-{family}")
        tokenizer.save(directory)
        return tokenizer, directory

    return train


def settings(kind: str, **options) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(type=kind, **options)


def ids(tokenizer: Tokenizer, text: str, pair: str | None = None, **options) -> list[int]:
    return tokenizer.encode([text], None if pair is None else [pair], **options)[0][0].ids.tolist()


def peak(run: Callable[[], object]) -> float:
    """Most megabytes of Python's memory that a call takes."""
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


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
    other = train_tokenizer.train_tokenizer(texts, settings(kind, family=same, **size))
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
    t = train_tokenizer.train_tokenizer([*corpus, *["2024"] * 500], settings(kind, family="llama", vocab_size=SIZE))
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
    train = train_tokenizer.train_tokenizer
    t = train(texts, settings("wordpiece", vocab_size=100))
    assert t.tokens(ids(t, "Apple BANANA", special_tokens=False)) == ["apple", "banana"]
    assert len(ids(t, "cherry", special_tokens=False)) > 1
    t = train(texts, settings("wordpiece", vocab_size=100, lowercase=False, min_frequency=1))
    assert t.tokens(ids(t, "Apple banana cherry", special_tokens=False)) == ["Apple", "banana", "cherry"]
    with pytest.raises(UserError, match="no word in the texts"):
        train(["", " \n", "x" * 101], settings("wordpiece"))


def test_byte_bpe_learns_words_with_their_space():
    texts = ["the cat", "the cat", "a dog"]
    t = train_tokenizer.train_tokenizer(texts, settings("byte_bpe", vocab_size=400))
    assert t.tokens(ids(t, "the cat")) == ["the", "Ġcat"]
    assert len(ids(t, " dog")) > 1
    t = train_tokenizer.train_tokenizer(texts, settings("byte_bpe", vocab_size=400, min_frequency=1))
    assert t.tokens(ids(t, " dog")) == ["Ġdog"]


def test_char():
    texts = ["hello", "world ☃"]
    t = train_tokenizer.train_tokenizer(texts, settings("char"))
    assert t.tokens(range(t.vocab_size)) == ["<unk>", "<|endoftext|>", "\n", " ", *"dehlorw☃"]
    assert t.tokens(ids(t, "low\n\r")) == ["l", "o", "w", "\n", "<unk>"]
    few = train_tokenizer.train_tokenizer(texts, settings("char", vocab_size=6))
    assert few.tokens(range(few.vocab_size)) == ["<unk>", "<|endoftext|>", "\n", " ", "l", "o"]
    assert t.tokens(ids(t, "e\u0301")) == ["e", "<unk>"]  # a code point, not what looks like one character


def test_char_keeps_every_character_of_a_large_alphabet_unless_told():
    """The default size of a vocabulary is not meant for it."""
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 9000)))
    assert train_tokenizer.train_tokenizer([text], settings("char")).vocab_size == 9003
    assert train_tokenizer.train_tokenizer([text], settings("char", vocab_size=8000)).vocab_size == 8000


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_learns_from_long_texts(kind, corpus):
    """Which the library itself leaves out without a word; line feeds never become part of a token."""
    text = "\n".join(corpus)
    t = train_tokenizer.train_tokenizer([text], settings(kind, family="llama", vocab_size=1000))
    assert t.tokens(ids(t, "the and", special_tokens=False)) == ["▁the", "▁and"]
    assert not any("\n" in token for token in t.tokens(range(t.vocab_size)))


def test_pieces_of_text_lose_nothing():
    lines = ["".join(random.Random(seed).choices("abc   ", k=3000)) for seed in (0, 1)]
    pieces = list(train_sentencepiece._pieces(["\n".join(lines)]))
    assert max(map(len, pieces)) <= 256 and len(pieces) > 20
    cut = next(n for n in range(len(pieces)) if " ".join(pieces[:n]) == lines[0])  # cut at a space, which is left out
    assert " ".join(pieces[cut:]) == lines[1]
    pieces = list(train_sentencepiece._pieces(["今天" * 300, "", "x\n\ny"]))
    assert "".join(pieces) == "今天" * 300 + "xy" and max(map(len, pieces)) == 256 and pieces[-2:] == ["x", "y"]


@pytest.mark.parametrize(("kind", "family"), [("unigram", "t5"), ("bpe", "llama")])
def test_rare_and_reserved_characters_cost_no_text(kind, family, corpus):
    """Half of the vocabulary, at most, goes to characters; the library skips texts with NUL or U+2585."""
    alphabet = iter(map(chr, range(0x4E00, 0x4E00 + 9999)))
    texts = [text.replace(" ", "\0") + f"\u2585{next(alphabet)}" for text in corpus[:40] + corpus[80:]]
    t = train_tokenizer.train_tokenizer(texts, settings(kind, family=family, vocab_size=800))
    assert t.tokens(ids(t, "the and", special_tokens=False)) == ["▁the", "▁and"]
    assert t.vocab_size == 800


# The same texts, the same files.


def test_deterministic_byte_for_byte(shared_data):
    """In another process too: hash tables are seeded at random. Sampling included."""
    script = f"""
        import functools, hashlib, tempfile
        from pathlib import Path
        from jaxlm.config import TokenizerTrainingConfig
        from jaxlm.data import train_tokenizer, word_counts
        word_counts._BATCH = 50_000
        train_tokenizer.count_words = functools.partial(word_counts.count_words, most=3000)
        for kind in ("wordpiece", "unigram", "bpe", "byte_bpe", "char"):
            with tempfile.TemporaryDirectory() as folder:
                settings = TokenizerTrainingConfig(type=kind, vocab_size=1000)
                output = Path(folder) / "out"
                files = [{str(shared_data / "lm/c4_demo/train.jsonl")!r}]
                train_tokenizer.train_to_directory(files, output, settings, max_sentences=500)
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


# Bounded memory.


def endless(count: int) -> Iterator[str]:
    """Texts of words that are all different, but for one."""
    for i in range(count):
        yield f"the w{i}x the y{i}z"


def test_word_counts_are_exact_and_then_an_even_sample_in_bounded_memory(monkeypatch):
    monkeypatch.setattr(word_counts, "_BATCH", 20_000)
    exact = word_counts.count_words(endless(1000), str.split)
    assert exact["the"] == 2000 and exact["w7x"] == 1 and len(exact) == 2001
    sampled: list[Counter[str]] = []
    megabytes = peak(lambda: sampled.append(word_counts.count_words(endless(30_000), str.split, most=2000)))
    [counts] = sampled
    assert len(counts) <= 2000 and megabytes < 2  # 60,000 different words would take 5.5
    assert counts.total() > 1000 and counts["the"] / counts.total() == pytest.approx(0.5, abs=0.05)  # as in the texts
    halves = (f"{'ab'[i >= 15_000]} x{i}" for i in range(30_000))
    counts = word_counts.count_words(halves, str.split, most=2000)
    assert counts["a"] / counts["b"] == pytest.approx(1, abs=0.3) and counts["a"] > 100  # early or late


def test_training_takes_bounded_memory(monkeypatch):
    """The texts of an endless generator would not fit."""
    monkeypatch.setattr(word_counts, "_BATCH", 20_000)
    monkeypatch.setattr(train_tokenizer, "count_words", functools.partial(word_counts.count_words, most=2000))
    for kind, most in (("wordpiece", 2), ("byte_bpe", 1), ("char", 0.1)):  # unbounded: 3.3, 1.6, 0.2
        options = settings(kind, vocab_size=500)
        assert peak(lambda options=options: train_tokenizer.train_tokenizer(endless(10_000), options)) < most
    options = settings("bpe", vocab_size=500)
    texts = (text * 500 for text in endless(1000))  # 10 MB
    assert peak(lambda: train_tokenizer.train_tokenizer(texts, options, max_sentences=500)) < 3


def test_even_sample():
    kept, seen = train_sentencepiece.sample_evenly(map(str, range(10_000)), 500)
    assert seen == 10_000 and len(set(kept)) == 500
    assert np.mean(list(map(int, kept))) == pytest.approx(5000, abs=400)
    assert train_sentencepiece.sample_evenly(map(str, range(10_000)), 500)[0] == kept
    assert train_sentencepiece.sample_evenly(["a", "b"], 500) == (["a", "b"], 2)


@pytest.mark.parametrize("name", ["line.txt.gz", "rows.jsonl.zst"])
def test_files_are_streamed(tmp_path, name):
    """40 MB in a single line, or in many rows."""
    path = tmp_path / name
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else pyarrow.CompressedOutputStream(path, "zstd") as file:
        for _ in range(1000):
            file.write(
                b"word " * 8000 if path.suffix == ".gz" else (json.dumps({"text": "word " * 8000}) + "\n").encode()
            )
    total = []
    assert peak(lambda: total.append(sum(map(len, read_texts([path]))))) < 6
    assert total == [40_000_000]


def test_parquet_is_read_by_row_group(tmp_path):
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["word " * 200] * 40_000}), path, row_group_size=1000)
    texts = read_texts([path])
    before = pyarrow.total_allocated_bytes()
    most = max(pyarrow.total_allocated_bytes() - before for _ in texts)
    assert most < 8e6  # of 40 MB


@pytest.mark.parametrize("kind", ["wordpiece", "byte_bpe"])
def test_counting_by_chunks_changes_no_word(kind, monkeypatch):
    """Words are split from white space and what follows it, each different one once."""
    seen: list[Counter[str]] = []
    monkeypatch.setattr(train_tokenizer, "count_words", lambda t, split: seen.append(count(t, split)) or seen[-1])
    count = word_counts.count_words
    generator = random.Random(0)
    texts = ["".join(generator.choices("ab'sé1.今 \u00a0\t\n\u3000", k=60)) for _ in range(500)] + TRICKY
    train_tokenizer.train_tokenizer(texts, settings(kind, vocab_size=400))
    whole: Counter[str] = Counter()
    if kind == "byte_bpe":
        pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        pre = tokenizers.pre_tokenizers.BertPreTokenizer()
        texts = list(map(tokenizers.normalizers.BertNormalizer(lowercase=True).normalize_str, texts))
    for text in texts:
        whole.update(word for word, _ in pre.pre_tokenize_str(text))
    assert whole.pop("x" * 300) == 1  # too long: cut for BPE, unknown for WordPiece
    if kind == "byte_bpe":
        whole["x" * 100] += 3
    assert seen == [whole]


# Input files.

LINES = ["first line", "  two  spaces ", "今天 🙂", "a\u2028b\u0085c", "last"]


def write(path: Path, column: str = "text") -> Path:
    """LINES, in the format and compression of the name."""
    plain = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if plain.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"n": [0] * 6, column: [*LINES, None]}), plain)
    elif plain.suffix == ".jsonl":
        rows = [{"n": 0, column: text} for text in [*LINES, None]]
        plain.write_text("\n".join(map(json.dumps, rows)) + "\n\n", "utf-8")
    else:
        plain.write_text("\n".join([*LINES[:2], "", *LINES[2:]]), "utf-8")
    content = plain.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        path.write_bytes(pyarrow.compress(content, "zstd", asbytes=True))
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", ["train.en", "a.txt", "a.jsonl", "a.parquet"])
def test_formats_say_the_same(tmp_path, form, compression):
    path = write(tmp_path / f"{form}{compression}")
    assert list(read_texts([path, path])) == [*LINES, *LINES]


def test_column_line_ends_and_byte_order_mark(tmp_path):
    assert list(read_texts([write(tmp_path / "a.jsonl", "body")], "body")) == LINES
    (tmp_path / "dos.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert list(read_texts([tmp_path / "dos.txt"])) == ["one", "two"]
    (tmp_path / "two.gz").write_bytes(gzip.compress(b"one\n") + gzip.compress(b"two"))
    assert list(read_texts([tmp_path / "two.gz"])) == ["one", "two"]
    member = [pyarrow.compress(text, "zstd", asbytes=True) for text in (b"one\n", b"two")]
    (tmp_path / "two.zst").write_bytes(b"".join(member))
    assert list(read_texts([tmp_path / "two.zst"])) == ["one", "two"]


def test_a_long_line_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxlm.data.text_inputs._PIECE", 7)
    (tmp_path / "a").write_text("今天🙂" * 20 + "\nx\n", "utf-8")
    pieces = list(read_texts([tmp_path / "a"]))
    assert "".join(pieces) == "今天🙂" * 20 + "x" and pieces[-1] == "x" and len(pieces) > 20


def test_patterns(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt", "[x].txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [str(path.relative_to(tmp_path)) for path in input_files([f"{tmp_path}/[ab].txt", f"{tmp_path}/**/*.txt"])]
    assert names == ["a.txt", "b.txt", "[x].txt", "deep/c.txt"]
    assert input_files([f"{tmp_path}/[x].txt"]) == [tmp_path / "[x].txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"fine\n\xff\n", r"a\.txt:2: byte 0xff is not UTF-8"),
        ("a.txt", b"fine\n\xe4", r"a\.txt:2: byte 0xe4 is not UTF-8"),
        ("a.txt.gz", gzip.compress(b"x" * 99999)[:-20], r"a\.txt\.gz: not a whole gzip file"),
        ("a.txt.gz", b"plain", r"a\.txt\.gz: not a whole gzip file"),
        ("a.txt.zst", b"plain", r"a\.txt\.zst: .*not a whole zstd file"),
        ("a.jsonl", b'{"text": "x"}\n{"text"', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", b'{"body": "x", "n": 1}', r"a\.jsonl:1: no column 'text'; found body, n; name one with --column"),
        ("a.jsonl", b'["x"]', r"a\.jsonl:1: expected one JSON object to a line; found list"),
        ("a.jsonl", b'{"text": 3}', r"a\.jsonl:1: column 'text' holds int; expected text"),
        ("a.jsonl", b'{"text": "\\ud83d"}', r"a\.jsonl:1: .*surrogate"),
        ("a.parquet", b"PAR1", r"a\.parquet: not a whole parquet file"),
        ("a.json", b'[\n{"text": "x"}\n]', r"a\.json:1: not valid JSON .*expected one object to a line"),
        ("a.csv.gz", b"", r"a\.csv\.gz: \.csv is not read here; expected text .*\.jsonl or \.parquet"),
    ],
)
def test_bad_input(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_texts(input_files([str(tmp_path / name)])))


def test_bad_parquet_columns(tmp_path):
    path = write(tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column 'body'; found n, text"):
        list(read_texts([path], "body"))
    with pytest.raises(UserError, match="column 'n' holds int64; expected text"):
        list(read_texts([path], "n"))


def test_missing_files(tmp_path):
    with pytest.raises(UserError, match=r"--input: .*/\*\.txt: no such file, and no match as a pattern"):
        input_files([f"{tmp_path}/*.txt"])
    with pytest.raises(UserError, match="--input: .*: a directory; expected files"):
        input_files([str(tmp_path)])


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
        ({"type": "bpe", "family": "llamma"}, "family: no special tokens 'llamma' for type bpe; .*did you mean llama"),
        ({"type": "wordpiece", "family": "t5"}, "family: no special tokens 't5' for type wordpiece; expected bert"),
    ],
)
def test_settings_that_do_not_work(options, message):
    with pytest.raises(UserError, match=message):
        train_tokenizer.train_tokenizer(["some text"], TokenizerTrainingConfig(**options))


@pytest.mark.parametrize("kind", list(CHOICES))
def test_the_smallest_vocabulary_named_works_and_no_text_does_not(kind):
    smallest = {"wordpiece": 64, "unigram": 167, "bpe": 323, "byte_bpe": 257, "char": 6}[kind]
    options = settings(kind, vocab_size=smallest)
    assert train_tokenizer.train_tokenizer(["some text, and some more"] * 9, options).vocab_size <= smallest
    with pytest.raises(UserError, match="in the texts to train|no text to train"):
        train_tokenizer.train_tokenizer(iter(["", ""]), options)


# The command.


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "in.txt").write_text("the cat sat on the mat\nthe dog sat\n" * 20)
    return tmp_path / "in.txt"


def test_command(text, tmp_path):
    script = Path(__file__).parents[1] / "scripts" / "train_tokenizer.py"
    command = [sys.executable, str(script), "--input", str(text), "--vocab-size", "300", "--type", "byte_bpe"]
    command += ["--family", "roberta", "--output", str(tmp_path / "new" / "out"), "--min-frequency", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "out: byte_bpe, " in done.stderr
    t = load_tokenizer(tmp_path / "new" / "out")
    assert t.cls_id == 0 and t.decode(ids(t, "the cat")) == "the cat"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_command_options(text, tmp_path):
    base = ["train-tokenizer", "--input", str(text)]
    assert main([*base, "--type", "char", "--output", f"{tmp_path}/char"]) == 0
    assert load_tokenizer(tmp_path / "char").vocab_size == len(set("the cat sat on the mat\nthe dog sat")) + 2
    (tmp_path / "rows.jsonl").write_text('{"body": "Die Katze"}\n' * 5)
    (tmp_path / "empty").mkdir()
    options = ["--type", "wordpiece", "--no-lowercase", "--vocab-size", "80", "--column", "body"]
    assert main(["train-tokenizer", "--input", f"{tmp_path}/*.jsonl", *options, "--output", f"{tmp_path}/empty"]) == 0
    t = load_tokenizer(tmp_path / "empty")
    assert t.tokens(ids(t, "Die Katze", special_tokens=False)) == ["Die", "Katze"]
    options = ["--type", "unigram", "--vocab-size", "200", "--max-sentences", "10"]
    assert main([*base, *options, "--output", f"{tmp_path}/sp"]) == 0
    assert load_tokenizer(tmp_path / "sp").eos_id == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--type bpe", "--vocab-size: type bpe needs"),
        (
            "--type bpe --vocab-size 400 --min-frequency 2",
            "--min-frequency: not for type bpe; only for wordpiece, byte_bpe",
        ),
        ("--type char --no-lowercase", "--lowercase: not for type char; only for wordpiece"),
        ("--type wordpiece --vocab-size 400 --max-sentences 5", "--max-sentences: not for type wordpiece"),
        ("--type wordpiece --vocab-size 3", "vocab_size: 3 is too small"),
    ],
)
def test_command_refuses_options(text, tmp_path, capsys, options, message):
    command = ["train-tokenizer", "--input", str(text), "--output", f"{tmp_path}/out", *options.split()]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_is_never_overwritten(text, tmp_path, capsys):
    """Which is found before the training, and before a missing input."""
    base = ["train-tokenizer", "--type", "char", "--input", f"{tmp_path}/absent", "--output"]
    assert main([*base, str(tmp_path)]) == 2
    assert "is a directory that is not empty; expected a new or an empty directory" in capsys.readouterr().err
    assert main([*base, str(text)]) == 2
    assert "in.txt is a file; expected a new or an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_output_is_whole_or_absent(text, tmp_path, monkeypatch):
    train = functools.partial(train_tokenizer.train_to_directory, [str(text)], tmp_path / "out", settings("char"))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError):
        train_tokenizer.train_to_directory([str(tmp_path / "bad.jsonl")], tmp_path / "out", settings("char"))
    save = Tokenizer.save

    def full_disk(self, directory):
        save(self, directory)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunFailure, match="--output: cannot write .*No space left"):
        patch.setattr(Tokenizer, "save", full_disk)
        train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "in.txt"]
    train()
    digest = hashlib.sha256((tmp_path / "out" / "tokenizer.json").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="not empty"):
        train()
    assert hashlib.sha256((tmp_path / "out" / "tokenizer.json").read_bytes()).hexdigest() == digest
