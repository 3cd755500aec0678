"""For tests: small corpora in which every token is its own place, so that rows tell; and a tokenizer of bytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from jaxlm.data.corpus.corpus import Corpus, map_array
from jaxlm.tokenizer.files import TokenizerFiles
from jaxlm.tokenizer.tokenizer import Tokenizer


def make_corpus(lengths, *, directory: Path | None = None, base: int = 0, name: str = "corpus") -> Corpus:
    """Documents of these lengths; token i of the corpus is `base` + i."""
    offsets = np.append(0, np.cumsum(np.asarray(lengths, np.int64)))
    tokens = (base + np.arange(offsets[-1])).astype(np.uint32)
    digests = np.arange(len(lengths), dtype=np.uint64)
    corpus = Corpus(name, tokens, offsets, digests, int(offsets[-1]) * 4, f"{name}{base}{list(lengths)}")
    if directory is None:
        return corpus
    directory.mkdir(parents=True)
    for part in ("tokens", "offsets", "digests"):
        getattr(corpus, part).tofile(directory / part)
    mapped = {part: map_array(directory / part, getattr(corpus, part).dtype) for part in ("tokens", "offsets")}
    return dataclasses.replace(corpus, directory=directory, **mapped)


def document_of(corpus: Corpus, place: int) -> int:
    """The document that a token of the corpus belongs to."""
    return int(np.searchsorted(corpus.offsets, place, side="right")) - 1


LENGTHS = {
    "mixed": [5, 1, 40, 16, 17, 3, 3, 100, 2, 8, 33, 15, 1, 1, 64, 9] * 3,
    "all short": [2, 3, 2, 4, 3] * 12,
    "one long": [1000],
    "all of one token but one": [1] * 20 + [2],
    "as long as a row": [16, 17, 16, 17],
}


def byte_tokenizer(*, bos: bool = True, eos: bool = True, spare: int = 0) -> Tokenizer:
    """Ids 0 to 255 are the bytes of UTF-8, 256 is <s> and 257 </s>; a text begins with <s> if there is one.

    Args:
        spare: tokens beyond those, which no text uses.
    """
    alphabet = {byte_token(byte): byte for byte in range(256)}
    vocabulary = alphabet | {"<s>": 256, "</s>": 257} | {f"<{i}>": 258 + i for i in range(spare)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    roles = {role: token for role, token in {"bos": "<s>", "eos": "</s>"}.items() if {"bos": bos, "eos": eos}[role]}
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return Tokenizer(TokenizerFiles(backend, roles, {}))


def byte_token(byte: int) -> str:
    """GPT-2's printable stand-in for a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return chr(byte) if byte in printable else chr(256 + [b for b in range(256) if b not in printable].index(byte))
