"""Trains SentencePiece models, unigram and BPE, on an even sample of the texts."""

from __future__ import annotations

import io
import json
import logging
import random
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jaxlm.errors import UserError
from jaxlm.tokenizer import files
from jaxlm.tokenizer.families import TokenizerFamily
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

MAX_SENTENCES = 500_000
_LONGEST = 256  # characters to a piece of text
_SMALLEST = 64  # entries beside special tokens and bytes
_RARE = 1e-7  # share of the characters below which one gets no entry of its own
_RESERVED = "\0\u2585"  # the library leaves out texts with one of these


def train_sentencepiece(
    texts: Iterable[str], kind: str, family: TokenizerFamily, *, vocab_size: int, max_sentences: int = MAX_SENTENCES
) -> Tokenizer:
    """Trains a SentencePiece model; the same texts give the same model, byte for byte.

    A llama tokenizer keeps every character and space of a text, falling back to bytes. The others normalize it (NFKC,
    single spaces) and have <unk> for characters that they have not seen.

    Args:
      texts: read once; a line feed, or a length of 256 characters, begins a new piece of text.
      kind: unigram or bpe.
      family: t5, llama or xlm-roberta.
      vocab_size: most tokens, special ones, sentinels and bytes included. Single characters, the most frequent first,
        take at most half of the rest.
      max_sentences: pieces of text that are held and learned from, drawn evenly. Unigram needs about 25 bytes of memory
        for a character of them.
    Raises:
      UserError: nothing to learn from, or `vocab_size` too small.
    """
    import sentencepiece

    options = family.sentencepiece_options or {}
    size = vocab_size - family.extra_ids
    if family.name == "xlm-roberta":
        size -= 2  # <pad> and <mask> are not the library's
    room = size - 3 - (256 if "byte_fallback" in options else 0)
    if room < _SMALLEST:
        raise UserError(
            f"vocab_size: {vocab_size} is too small for type {kind} with the special tokens of {family.name}; "
            f"expected at least {vocab_size - room + _SMALLEST}"
        )
    sample, seen = sample_evenly(_pieces(texts), max_sentences)
    if seen > len(sample):
        log.info("learning from %d of %d pieces of text, drawn evenly", len(sample), seen)
    if "normalization_rule_name" not in options:
        normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc", escape_whitespaces=False)
        sample = [normalizer.normalize(text) for text in sample]
    sample = _without_rare(sample, room // 2)
    if not sample:
        raise UserError("no text to train a tokenizer on; expected at least one text that is not blank")

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            num_threads=16,  # sums of floats depend on it
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        raise UserError(f"sentencepiece cannot learn from these texts: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / family.sentencepiece_file).write_bytes(model.getvalue())
        (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": family.classes[0]}))
        return Tokenizer(files.read(directory))


def sample_evenly(items: Iterable[str], most: int) -> tuple[list[str], int]:
    """Draws at most `most` items, each with the same chance; the same items give the same sample.

    Returns:
      The sample, and the number of items.
    """
    generator = random.Random(0)
    kept: list[str] = []
    seen = 0
    for item in items:
        seen += 1
        if len(kept) < most:
            kept.append(item)
        elif (slot := int(generator.random() * seen)) < most:
            kept[slot] = item
    return kept, seen


def _pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yields lines, cut at spaces where they are long: the library would leave out lines of more than 4,192 bytes."""
    for text in texts:
        for line in text.split("\n"):
            start = 0
            while len(line) - start > _LONGEST:
                # The library puts a space before every piece, in place of the one that the cut takes out.
                end = line.rfind(" ", start + 1, start + _LONGEST)
                if end < 0:
                    yield line[start : start + _LONGEST]
                    start += _LONGEST
                else:
                    yield line[start:end]
                    start = end + 1
            if rest := line[start:]:
                yield rest


def _without_rare(texts: Sequence[str], most: int) -> list[str]:
    """Returns the texts with a space for every character that gets no entry, without blank ones."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    least = counts.total() * _RARE
    order = sorted(counts, key=lambda c: (-counts[c], c))
    rare = {ord(c): " " for i, c in enumerate(order) if i >= most or counts[c] < least or c in _RESERVED}
    cleaned = (text.translate(rare) if rare else text for text in texts)
    return [text for text in cleaned if text.strip()]
