"""Trains tokenizers on the user's own texts: WordPiece, byte-level BPE and characters here, and SentencePiece."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from jaxlm.errors import UserError
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.families import FAMILIES, TokenizerFamily, choose_family
from jaxlm.tokenizer.sentencepiece_training import MAX_SENTENCES, train_sentencepiece
from jaxlm.tokenizer.tokenizer import Tokenizer
from jaxlm.tokenizer.vocabulary_files import bert_backend
from jaxlm.tokenizer.word_counts import count_words

_SMALLEST = 64
_LONGEST = 100  # characters: WordPiece takes a longer word for [UNK]


def train_tokenizer(
    texts: Iterable[str], settings: TokenizerTrainingConfig, *, max_sentences: int = MAX_SENTENCES
) -> Tokenizer:
    """Trains a tokenizer of any type; the same texts give the same tokenizer, in bounded memory.

    Args:
      texts: read once.
      settings: type, size and family of the tokenizer. Type char keeps all characters unless `vocab_size` was set.
      max_sentences: pieces of text that unigram and bpe learn from, drawn evenly; the other types count everything.
    Raises:
      UserError: a family that the type does not have, a `vocab_size` too small, or nothing to learn from.
    """
    kind, size = settings.type, settings.vocab_size
    family = choose_family(kind, settings.family)
    if kind == "wordpiece":
        return train_wordpiece(
            texts, vocab_size=size, lowercase=settings.lowercase, min_frequency=settings.min_frequency
        )
    if kind == "byte_bpe":
        return train_byte_bpe(texts, family, vocab_size=size, min_frequency=settings.min_frequency)
    if kind == "char":
        return train_char(texts, family, vocab_size=size if "vocab_size" in settings.model_fields_set else None)
    return train_sentencepiece(texts, kind, family, vocab_size=size, max_sentences=max_sentences)


def train_wordpiece(
    texts: Iterable[str], *, vocab_size: int, lowercase: bool = True, min_frequency: int = 2
) -> Tokenizer:
    """Trains a BERT tokenizer; the same texts give the same vocabulary.

    Args:
      texts: read once.
      vocab_size: most tokens; [PAD] [UNK] [CLS] [SEP] [MASK] are ids 0..4. Single characters, the most frequent first,
        take at most half of it; words with a rarer character become [UNK].
      lowercase: lower the case and strip accents, in training and later.
      min_frequency: occurrences that a token needs to be made.
    Raises:
      UserError: no word in the texts, or `vocab_size` too small.
    """
    if vocab_size < _SMALLEST:
        raise UserError(
            f"vocab_size: {vocab_size} is too small for a WordPiece vocabulary; expected at least {_SMALLEST}"
        )
    family = FAMILIES["bert"]
    backend = bert_backend({"[UNK]": 0}, "[UNK]", lowercase=lowercase)

    def split(text: str) -> Iterator[str]:
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)):
            if len(word) <= _LONGEST:
                yield word

    words = _some(count_words(texts, split), "word")
    # The trainer numbers the "##x" of single characters in the order of a hash table, and breaks ties by number: given
    # beforehand, in order, they make it deterministic.
    alphabet = _alphabet(words, vocab_size // 2)
    kept = {word: count for word, count in sorted(words.items()) if alphabet.issuperset(_characters(word))}
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*family.tokens, *sorted(token for token in alphabet if len(token) > 1)],
        show_progress=False,
    )
    vocab = _train(models.WordPiece(unk_token="[UNK]"), trainer, kept).get_vocab()
    backend = bert_backend(vocab, "[UNK]", lowercase=lowercase)
    lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    config = {"do_lower_case": lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    return Tokenizer.from_backend(backend, family, config=config, copies={"vocab.txt": lines.encode()})


def train_byte_bpe(
    texts: Iterable[str], family: TokenizerFamily, *, vocab_size: int, min_frequency: int = 2
) -> Tokenizer:
    """Trains a byte-level BPE tokenizer as GPT-2's: any text in, the same text back.

    Args:
      texts: read once.
      family: its special tokens are ids 0, 1, ...; the 256 bytes follow.
      vocab_size: most tokens.
      min_frequency: occurrences that a token needs to be made.
    Raises:
      UserError: nothing in the texts, or `vocab_size` too small.
    """
    smallest = len(family.tokens) + 256 + family.extra_ids
    if vocab_size < smallest:
        raise UserError(
            f"vocab_size: {vocab_size} is too small for the 256 bytes and the special tokens of {family.name}; "
            f"expected at least {smallest}"
        )
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)

    def split(text: str) -> Iterator[str]:
        for word, _ in byte_level.pre_tokenize_str(text):
            for start in range(0, len(word), _LONGEST):
                yield word[start : start + _LONGEST]

    words = _some(count_words(texts, split), "text")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - family.extra_ids,
        min_frequency=min_frequency,
        special_tokens=list(family.tokens),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend = _train(models.BPE(), trainer, dict(sorted(words.items())))
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    with tempfile.TemporaryDirectory() as folder:
        copies = {Path(file).name: Path(file).read_bytes() for file in backend.model.save(folder)}
    return Tokenizer.from_backend(backend, family, config={"add_prefix_space": False}, copies=copies)


def train_char(texts: Iterable[str], family: TokenizerFamily, *, vocab_size: int | None = None) -> Tokenizer:
    """Makes a tokenizer with one token to a character (code point), in Unicode order behind the special tokens.

    Args:
      texts: read once.
      family: its special tokens; where these have no <unk> of their own, <unk> comes before them as id 0.
      vocab_size: most tokens; None: all characters. With fewer, the most frequent ones.
    Raises:
      UserError: nothing in the texts, or `vocab_size` without room for a character.
    """
    unk = next((token for token in family.tokens if "unk" in token.lower()), "<unk>")
    head = list(family.tokens) if unk in family.tokens else [unk, *family.tokens]
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    # A line feed ends the lines that texts are read from, and so may be missing from them.
    order = ["\n", *(c for c in sorted(_some(counts, "character"), key=lambda c: (-counts[c], c)) if c != "\n")]
    if vocab_size is not None:
        room = vocab_size - len(head) - family.extra_ids
        if room < 2:
            raise UserError(
                f"vocab_size: {vocab_size} leaves no room for characters beside the special tokens of {family.name}; "
                f"expected at least {vocab_size - room + 2}, or none for all of them"
            )
        order = order[:room]
    vocab = {token: i for i, token in enumerate([*head, *sorted(order)])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=unk))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return Tokenizer.from_backend(backend, family, unk=unk)


def _some(counts: Counter[str], what: str) -> Counter[str]:
    if not counts:
        raise UserError(f"no {what} in the texts to train a tokenizer on; expected at least one text that is not blank")
    return counts


def _train(model: models.Model, trainer: trainers.Trainer, words: dict[str, int]) -> tokenizers.Tokenizer:
    """Trains on counted words, none of which has white space in it."""
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(_repeat(words), trainer)
    return backend


def _repeat(words: dict[str, int], size: int = 1000) -> Iterator[str]:
    """Yields each word as often as it was counted, in texts of at most `size` words: the trainer takes no counts."""
    for word, count in words.items():
        for start in range(0, count, size):
            yield " ".join([word] * min(size, count - start))


def _characters(word: str) -> list[str]:
    """Returns the single-character tokens of a word, with "##" before all but the first."""
    return [word[0], *(f"##{character}" for character in word[1:])]


def _alphabet(words: Counter[str], limit: int) -> set[str]:
    """Returns the single-character tokens of the most frequent characters."""
    counts: Counter[str] = Counter()
    tokens: dict[str, set[str]] = {}
    for word, count in words.items():
        for token in _characters(word):
            character = token[-1]
            counts[character] += count
            # The trainer keeps every character by itself, too.
            tokens.setdefault(character, {character}).add(token)
    alphabet: set[str] = set()
    for character in sorted(counts, key=lambda c: (-counts[c], c)):
        if len(alphabet) + len(tokens[character]) > limit:
            break
        alphabet |= tokens[character]
    return alphabet
