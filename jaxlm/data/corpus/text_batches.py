"""Batches of cleaned and hashed documents for the tokenizer, made in a thread of their own."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from jaxlm.data.config import CleanConfig
from jaxlm.data.corpus.documents import Documents, Place
from jaxlm.data.corpus.text_digests import TextDigest
from jaxlm.data.sources.cleaning import DocumentCleaner

T = TypeVar("T")

_BATCH_CHARACTERS, _BATCH_TEXTS = 1 << 21, 4096


class DocumentEnd(NamedTuple):
    """A document whose last piece is in a batch."""

    digest: int
    num_bytes: int


@dataclass
class TextBatch:
    """Pieces of documents, in order.

    Attributes:
      texts: cleaned.
      ended: for each text the document that ends with it, or None.
      counts: counts of reading and cleaning on the way.
      problem: the first bad row among those that were skipped on the way.
      place: where the document that is open at the batch's end begins; without one, where the next begins.
      pieces: number of pieces of that document so far.
      fraction: how much of the source has been read, from 0 to 1.
    """

    place: Place
    pieces: int
    texts: list[str] = field(default_factory=list)
    ended: list[DocumentEnd | None] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    problem: str | None = None
    fraction: float = 0.0


def text_batches(
    documents: Documents, clean: CleanConfig, start: Place | None = None, skip: int = 0
) -> Iterator[TextBatch]:
    """Yields the texts of a source in batches; leaves out blank documents and counts them.

    Args:
      start: where a document begins.
      skip: number of pieces of that document that are hashed, but not passed on.
    """
    cleaner, place, pieces = DocumentCleaner(clean), start or Place(), 0
    batch, size, digest = TextBatch(place, 0), 0, TextDigest()
    for piece in documents.read(start):
        if piece.problem is not None:
            batch.counts["bad_rows"] += 1
            batch.problem = batch.problem or piece.problem
            place = piece.after if not pieces else place
            continue
        text = cleaner.piece(piece.text, starts=not pieces)
        pieces += 1
        digest.update(text)
        if skip:
            skip -= 1
            if not skip:
                cleaner.take_counts()  # of what was counted before
        elif piece.ends and pieces == 1 and (not text or text.isspace()):
            batch.counts["empty_documents"] += 1
        else:
            batch.texts.append(text)
            batch.ended.append(DocumentEnd(digest.value(), digest.num_bytes) if piece.ends else None)
            size += len(text)
        if piece.ends:
            digest, pieces, place = TextDigest(), 0, piece.after
        if size >= _BATCH_CHARACTERS or len(batch.texts) >= _BATCH_TEXTS:
            yield _finish(batch, cleaner, place, pieces, documents.fraction())
            batch, size = TextBatch(place, pieces), 0
    yield _finish(batch, cleaner, place, pieces, 1.0)


def _finish(batch: TextBatch, cleaner: DocumentCleaner, place: Place, pieces: int, fraction: float) -> TextBatch:
    batch.counts.update(cleaner.take_counts())
    batch.place, batch.pieces, batch.fraction = place, pieces, fraction
    return batch


def read_ahead(items: Iterable[T], size: int = 2) -> Generator[T]:
    """Yields items that another thread makes, at most `size` ahead; that thread ends with this iterator."""
    ready: queue.Queue[tuple[bool, Any]] = queue.Queue(size)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # raised where the items are used
            put((False, error))
        finally:
            if isinstance(items, Generator):
                items.close()  # and with it what it has open

    thread = threading.Thread(target=make, name="read-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stopped.set()
        thread.join()
