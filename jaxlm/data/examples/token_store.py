"""Tokens of labelled rows kept on disk, found again by content, so that only the first run tokenizes many rows."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.corpus.corpus import map_array
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.stored import MEMORY, open_or_make, seal
from jaxlm.data.corpus.text_digests import digest_texts
from jaxlm.errors import RunFailure
from jaxlm.files import atomic_folder
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

LEAST = 50_000
"""Texts; fewer are tokenized in seconds."""
_FORMAT = 1
_OFFSETS = np.dtype("<i8")
_TEXTS_AT_ONCE = 4096

Pieces = tuple[np.ndarray, ...]
"""What is known of a text's tokens: arrays of as many rows as it has tokens, the ids first."""


@dataclass(frozen=True)
class TokenStore:
    """A folder of tokenized texts.

    Attributes:
      folder: made when the first texts are kept.
      least: texts below which nothing is kept.
    """

    folder: Path
    least: int = LEAST

    def ids(self, tokenizer: Tokenizer, texts: Sequence[str]) -> Iterable[np.ndarray]:
        """Returns int32 [T] of each text, without special tokens: as `Tokenizer.token_ids`, which is not called for
        texts that the folder has."""
        kept = self.read(tokenizer, texts, "ids", lambda: ((ids,) for ids in tokenizer.token_ids(texts)))
        return (ids for (ids,) in kept)

    def read(
        self, tokenizer: Tokenizer, texts: Sequence[str], what: str, make: Callable[[], Iterable[Pieces]]
    ) -> Iterable[Pieces]:
        """Returns the arrays of each text: mapped from the folder, where they are kept under the content of the texts
        and of the tokenizer, or made, and kept if the texts are many.

        A folder that is damaged is named and made anew; where nothing can be written, that costs a warning.

        Args:
          what: names what `make` makes; with texts and tokenizer it decides all of that.
          make: makes the arrays, of each text as many and of the same types.
        """
        if len(texts) < self.least:
            return make()
        identity = {"format": _FORMAT, "what": what, "tokenizer": tokenizer.fingerprint, "texts": digest_texts(texts)}
        name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
        folder = self.folder.absolute() / name
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            facts = open_or_make(
                folder / "index.json",
                Contents(folder.parent / MEMORY),
                lambda: _build(folder / "index.json", make, identity),
                name=f"{len(texts):,} texts",
                what="tokenizing",
            )
            return _pieces(folder, facts)
        except (OSError, RunFailure) as error:
            log.warning("data.token_cache: tokens cannot be kept in %s: %s; the next run tokenizes again",
                        self.folder, error)  # fmt: skip
            return make()


def _build(index: Path, make: Callable[[], Iterable[Pieces]], identity: dict[str, Any]) -> None:
    with atomic_folder(index.parent) as folder:
        facts = _write(folder, make())
        seal(folder / index.name, {**facts, "identity": identity})
    log.info("tokenized once: %s texts, %s tokens, kept in %s", f"{facts['texts']:,}", f"{facts['tokens']:,}",
             index.parent)  # fmt: skip


def _write(folder: Path, pieces: Iterable[Pieces]) -> dict[str, Any]:
    """Writes the arrays of all texts, each kind end to end in a file; returns how to read them."""
    columns: list[list[Any]] = []
    texts = tokens = 0
    with contextlib.ExitStack() as stack:
        offsets = stack.enter_context((folder / "offsets.bin").open("wb"))
        offsets.write(np.zeros(1, _OFFSETS).tobytes())
        files: list[Any] = []
        for some in _batches(pieces):
            if not files:
                columns = [[array.dtype.str, list(array.shape[1:])] for array in some[0]]
                files = [stack.enter_context(_column(folder, i).open("wb")) for i in range(len(columns))]
            ends = tokens + np.cumsum([len(ids) for ids, *_ in some], dtype=_OFFSETS)
            texts, tokens = texts + len(some), int(ends[-1])
            offsets.write(ends.tobytes())
            for file, arrays in zip(files, zip(*some, strict=True), strict=True):
                file.write(np.concatenate(arrays).tobytes())
    return {"texts": texts, "tokens": tokens, "columns": columns}


def _pieces(folder: Path, facts: dict[str, Any]) -> list[Pieces]:
    offsets = map_array(folder / "offsets.bin", _OFFSETS).tolist()
    columns = [
        np.asarray(map_array(_column(folder, i), dtype)).reshape(-1, *shape)
        for i, (dtype, shape) in enumerate(facts["columns"])
    ]
    bounds = itertools.pairwise(offsets)
    return [tuple(column[start:stop] for column in columns) for start, stop in bounds]


def _column(folder: Path, number: int) -> Path:
    return folder / f"tokens{number or ''}.bin"


def _batches(pieces: Iterable[Pieces]) -> Iterator[list[Pieces]]:
    iterator = iter(pieces)
    while some := list(itertools.islice(iterator, _TEXTS_AT_ONCE)):
        yield some
