"""Training a tokenizer on the user's own texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from jaxlm.data.special_tokens import bert_processor
from jaxlm.data.tokenize import Tokenizer
from jaxlm.data.tokenizer_files import TokenizerFiles, bert_backend
from jaxlm.errors import UserError

_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
_SMALLEST = 64


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
    backend = bert_backend({"[UNK]": 0}, "[UNK]", lowercase=lowercase)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text)))
    if not words:
        raise UserError("no word in the texts to train a tokenizer on; expected at least one text that is not blank")

    # The trainer numbers the "##x" of single characters in the order of a hash table, and breaks ties by number: given
    # beforehand, in order, they make it deterministic.
    alphabet = _alphabet(words, vocab_size // 2)
    kept = {word: count for word, count in sorted(words.items()) if alphabet.issuperset(_characters(word))}
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[*_SPECIAL.values(), *sorted(token for token in alphabet if len(token) > 1)],
        show_progress=False,
    )
    training = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    training.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    training.train_from_iterator(_repeat(kept), trainer)

    vocab = training.get_vocab()
    backend = bert_backend(vocab, "[UNK]", lowercase=lowercase)
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL.values()])
    backend.post_processor = bert_processor(("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"]))
    lines = "".join(f"{token}\n" for token in sorted(vocab, key=vocab.__getitem__))
    config = {"do_lower_case": lowercase, "strip_accents": None, "tokenize_chinese_chars": True}
    return Tokenizer(TokenizerFiles(backend, _SPECIAL, config, {"vocab.txt": lines.encode()}))


def _characters(word: str) -> list[str]:
    """The single-character tokens of a word, "##" before all but the first."""
    return [word[0], *(f"##{character}" for character in word[1:])]


def _alphabet(words: Counter[str], limit: int) -> set[str]:
    """The single-character tokens of the most frequent characters."""
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


def _repeat(words: dict[str, int], size: int = 1000) -> Iterator[str]:
    """Each word as often as it was counted, in texts of at most `size` words: the trainer takes no counts."""
    for word, count in words.items():
        for start in range(0, count, size):
            yield " ".join([word] * min(size, count - start))
