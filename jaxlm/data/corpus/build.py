"""Builds a tokenized corpus: reading ahead in a thread, tokenizing in the tokenizer's own, and saying how far it is."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from jaxlm.console import printable, stderr_console
from jaxlm.data.config import CleanConfig
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.stored import check
from jaxlm.data.corpus.text_batches import TextBatch, read_ahead, text_batches
from jaxlm.data.corpus.text_digests import DigestSet
from jaxlm.data.corpus.writer import TokenWriter, remove_journal
from jaxlm.errors import Interrupted, Stop
from jaxlm.files import remove_folder
from jaxlm.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("jaxlm")

Wrap = Literal["documents", "none"]

_LOG_SECONDS = 30.0


@dataclass(frozen=True)
class Tokenizing:
    """How documents become tokens, and where these are kept.

    Attributes:
      text_column: the column that holds the text.
      tokenizer: of the model.
      wrap: "documents" puts around every document the special tokens that the tokenizer puts around a text, and its
          end-of-text token behind it where that is not among them; "none" puts nothing.
      cache: folder of all tokenized corpora, made if absent.
      stop: asked every few seconds; names the signal that asks for an end, if any.
    """

    text_column: str
    tokenizer: Tokenizer
    wrap: Wrap
    cache: Path
    stop: Stop = lambda: None


@dataclass(frozen=True)
class Dropped:
    """Documents that a corpus is built without.

    Attributes:
      known: hashes of texts, copies of which are dropped as those of its own documents are; None: none are dropped.
      leaks: hashes of texts, documents of which are dropped; None: none are.
    """

    known: DigestSet | None = None
    leaks: DigestSet | None = None


def build_tokens(
    folder: Path,
    documents: Documents,
    how: Tokenizing,
    clean: CleanConfig,
    dropped: Dropped,
    identity: dict[str, Any],
) -> None:
    """Writes a corpus into `folder`, continuing from what is there.

    Args:
      identity: what index.json says the corpus is made from.

    Raises:
      OSError: the folder cannot be written.
      Interrupted: `how.stop` named a signal; what is done is saved.
    """
    tokenizer = how.tokenizer
    if (folder / "index.json").is_file():  # killed just before it was put in place
        facts, problem = check(folder / "index.json", Contents())
        if facts is not None:
            remove_journal(folder)
            return
        log.warning("%s: damaged: %s; it is made anew", folder, problem)
        remove_folder(folder)
    before, after = special_token_affixes(tokenizer, how.wrap)
    dtype = token_type(tokenizer.vocab_size)
    with TokenWriter(folder, dtype, before, after) as writer:
        if writer.num_tokens or writer.pieces:
            log.info("%s: going on after %s tokens of an earlier build", documents.name, f"{writer.num_tokens:,}")
        if dropped.known is not None:
            dropped.known.add_all([writer.digests()])
        batches = read_ahead(text_batches(documents, clean, writer.place, writer.pieces))
        with _progress(documents.name, writer.num_tokens) as show, contextlib.closing(batches):
            for batch in batches:
                ids = [pieces[0].ids for pieces in tokenizer.encode(batch.texts, special_tokens=False)]
                if tokenizer.unk_id is not None:
                    batch.counts["unknown_tokens"] += sum(int((each == tokenizer.unk_id).sum()) for each in ids)
                writer.add(batch, ids, _dropped(batch, ids, writer.pieces > 0, dropped))
                show(batch.fraction, writer)
                if (signal := how.stop()) is not None:
                    writer.checkpoint()
                    raise Interrupted(
                        f"{signal}: {writer.num_tokens:,} tokens of {documents.name} are saved; the same command goes "
                        "on from there"
                    )
        index = {
            "dtype": dtype.name,
            "documents": writer.num_documents,
            "tokens": writer.num_tokens,
            "bytes": writer.num_bytes,
            "counts": dict(sorted(writer.counts.items())),
            "problem": writer.problem,
            "made_from": identity,
        }
        writer.finish(index)


def token_type(vocab_size: int) -> np.dtype:
    """Returns the smallest dtype that holds all ids."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def special_token_affixes(tokenizer: Tokenizer, wrap: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the int32 ids before and after every document, by `Tokenizing.wrap`."""
    empty = np.zeros(0, np.int32)
    if wrap == "none":
        return empty, empty
    before, after = tokenizer.special_token_affixes
    if tokenizer.eos_id is not None and tokenizer.eos_id not in after[-1:]:
        after = np.append(after, np.int32(tokenizer.eos_id))
    return before, after


def _dropped(batch: TextBatch, ids: list[np.ndarray], begun: bool, against: Dropped) -> list[bool]:
    """Returns for each document that ends in the batch whether it is dropped, and counts those in the batch.

    The order of the reasons makes a build that goes on count as one in one go: what is known is what was kept.
    """
    whole = [not begun, *(ended is not None for ended in batch.ended)]  # whether a document begins with each text
    ends = [i for i, ended in enumerate(batch.ended) if ended is not None]
    dropped = np.asarray([whole[i] and not len(ids[i]) for i in ends], bool)
    batch.counts["empty_documents"] += int(dropped.sum())
    digests = np.asarray([ended.digest for ended in batch.ended if ended is not None], np.uint64)
    if against.leaks is not None:
        leaked = against.leaks.contains(digests) & ~dropped
        batch.counts["leaks_dropped"] += int(leaked.sum())
        dropped |= leaked
    if against.known is not None:
        left = np.flatnonzero(~dropped)
        copies = ~against.known.add(digests[left])
        batch.counts["duplicates_dropped"] += int(copies.sum())
        dropped[left[copies]] = True
    return dropped.tolist()


@contextlib.contextmanager
def _progress(name: str, tokens: int) -> Iterator[Callable[[float, TokenWriter], None]]:
    """A bar on a terminal, elsewhere a line every half minute; `tokens` were there at the start."""
    console, start = stderr_console(), time.monotonic()
    logged = start

    def words(writer: TokenWriter) -> str:
        speed = (writer.num_tokens - tokens) / max(time.monotonic() - start, 1e-9)
        return f"{writer.num_documents:,} documents  {writer.num_tokens:,} tokens  {speed:,.0f} tok/s"

    if not console.is_terminal:

        def show_line(fraction: float, writer: TokenWriter) -> None:
            nonlocal logged
            if time.monotonic() - logged >= _LOG_SECONDS:
                logged = time.monotonic()
                log.info("%s: tokenizing, %.0f%%  %s", name, 100 * fraction, words(writer))

        yield show_line
        return
    columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), TaskProgressColumn(),
               TextColumn("{task.fields[words]}"), TextColumn("eta"), TimeRemainingColumn(compact=True)]  # fmt: skip
    with Progress(*columns, console=console, refresh_per_second=4, redirect_stdout=False) as bar:
        task = bar.add_task(printable(f"tokenizing {name}"), total=1.0, words="")

        def show_bar(fraction: float, writer: TokenWriter) -> None:
            bar.update(task, completed=fraction, words=words(writer))

        yield show_bar
        bar.update(task, completed=1.0)
