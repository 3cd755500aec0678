"""Small corpora in memory and on disk for tests: every token is its own place in the corpus, so that rows tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from jaxlm.data.corpus import Corpus, map_array


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
