"""Which stretches of a corpus share a row: cut from the documents laid end to end, or whole documents packed."""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.corpus.corpus import Corpus, map_array, release
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.corpus.stored import MEMORY, open_or_make, seal
from jaxlm.data.examples.packing import plan_rows
from jaxlm.errors import UserError
from jaxlm.files import atomic_folder

Cost = Callable[[np.ndarray], np.ndarray]
"""Input tokens of segments -> columns they take up; grows with its argument."""

_WINDOW = 65536  # pieces that are packed together: more would waste no less, and take memory
_DOCUMENTS = 16384  # whose pieces are made at a time
_READS_TO_RELEASE = 4096


@dataclass(frozen=True)
class Segment:
    """A stretch of one document (or, across documents, of several laid end to end) that stands in a row.

    Attributes:
      tokens: int32 [n + lookahead]; the first n are inputs.
    """

    tokens: np.ndarray


@dataclass(frozen=True)
class RowPlan:
    """The rows of a corpus; made by `plan_corpus`.

    Attributes:
      corpus: where the tokens are.
      row_length: columns of a row.
      lookahead: tokens that a segment carries beyond its inputs.
      num_rows: rows of every epoch.
      max_segments: most segments in a row.
      num_columns: columns of one epoch that are not padding.
      settings: what decided the rows, under the names of config keys where there is one.
      layout: (row, epoch) -> (start, number of input tokens) of each segment.
    """

    corpus: Corpus
    row_length: int
    lookahead: int
    num_rows: int
    max_segments: int
    num_columns: int
    settings: dict[str, Any]
    layout: Callable[[int, int], list[tuple[int, int]]]

    def segments(self, row: int, epoch: int = 0) -> list[Segment]:
        """Returns the segments of a row, in the order of their columns."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} of {self.num_rows}")
        stretches = self.layout(row, epoch)
        return [Segment(self.corpus.read(start, start + n + self.lookahead)) for start, n in stretches]

    def first_tokens(self) -> np.ndarray:
        """int32 [D]: the tokens that no segment has behind its inputs; [0] where segments have no lookahead."""
        corpus = self.corpus
        if not self.lookahead:
            return np.zeros(0, np.int32)
        if self.settings["data.concat_documents"]:
            return corpus.read(0, 1)
        starts = np.array(corpus.offsets[:-1])
        return np.concatenate([corpus.tokens[starts[i : i + _DOCUMENTS]] for i in range(0, len(starts), _DOCUMENTS)])


def row_settings(row_length: int, lookahead: int, concat_documents: bool, costs: np.ndarray) -> dict[str, Any]:
    """Returns the settings that decide the rows, under the names of config keys where there is one."""
    return {
        "data.concat_documents": concat_documents,
        "the row length": row_length,
        "the lookahead of rows": lookahead,
        "the columns of a segment": hashlib.sha256(costs.tobytes()).hexdigest()[:16],
    }


def plan_corpus(
    corpus: Corpus,
    *,
    row_length: int,
    lookahead: int,
    concat_documents: bool,
    overhead: int = 0,
    cost: Cost | None = None,
    seed: int | None = None,
) -> RowPlan:
    """Divides a corpus into rows.

    - Across documents, the documents laid end to end are cut every so many tokens, one segment to a row. In training
      every epoch cuts elsewhere, at an offset drawn from (seed, epoch), and the less than two rows that this leaves
      over at the ends are passed over; evaluation cuts from the first token on and keeps the last, short row.
    - Otherwise documents that are longer than a row are cut into pieces that fill one, and the pieces are packed, best
      fit, in windows of 65,536. No segment mixes documents, and the rows are the same in every epoch. They are planned
      once, and kept beside the tokens.

    Args:
      row_length: columns of a row.
      lookahead: 1 for objectives that predict the next token: a segment of n input tokens carries the one behind them
          as well, with which the next segment of the document begins; so every token is predicted once in an epoch,
          but for the first of a document (across documents: of the corpus). Otherwise 0.
      overhead: columns that a segment takes up besides its input tokens, for special tokens around it.
      cost: columns of a segment by its input tokens, where they are not just as many, and `overhead`.
      seed: decides the cuts of training; None: evaluation.

    Raises:
      UserError: the corpus holds nothing to predict, or `row_length` is too small for a single token.
      RunFailure: the plan cannot be written beside the tokens.
    """
    costs = segment_costs(row_length, overhead, cost)
    settings = row_settings(row_length, lookahead, concat_documents, costs)
    make = _cut if concat_documents else _pack
    return make(corpus, row_length, lookahead, costs, seed, settings)


def segment_costs(row_length: int, overhead: int, cost: Cost | None) -> np.ndarray:
    """Returns int64 [longest + 1]: columns of a segment of n input tokens, up to the longest that a row holds.

    Raises:
      UserError: a row holds none.
    """
    longest, limit = 0, row_length
    costs = np.zeros(1, np.int64)
    while longest == len(costs) - 1:  # a segment may take up fewer columns than it has tokens
        limit *= 2
        lengths = np.arange(limit + 1)
        costs = lengths + overhead if cost is None else np.asarray(cost(lengths), np.int64)
        costs[0] = 0
        longest = int(np.searchsorted(np.maximum.accumulate(costs), row_length, side="right")) - 1
    if longest < 1:
        raise UserError(f"data.max_length: {row_length} leaves no room for text beside {overhead} special tokens")
    return costs[: longest + 1].astype(np.int64)


def _nothing(corpus: Corpus) -> UserError:
    return UserError(
        f"{corpus.name}: {corpus.num_documents} documents of {corpus.num_tokens} tokens in all leave nothing to learn "
        "from: expected at least one document of two tokens"
    )


# Across documents.


def _cut(
    corpus: Corpus, row_length: int, lookahead: int, costs: np.ndarray, seed: int | None, settings: dict[str, Any]
) -> RowPlan:
    size = len(costs) - 1
    inputs = corpus.num_tokens - lookahead
    if inputs < 1:
        raise _nothing(corpus)
    if seed is None:
        num_rows, slack = -(-inputs // size), 0
    else:
        # The number that fits at every offset, so that all epochs have the same number of rows.
        num_rows = max(1, (inputs - size + 1) // size)
        slack = min(size - 1, max(0, inputs - num_rows * size))
        settings = {**settings, "the seed of the cuts": seed}

    @functools.lru_cache(maxsize=4)
    def offset(epoch: int) -> int:
        return 0 if not slack else int(np.random.default_rng([seed or 0, epoch, 0xC0]).integers(slack + 1))

    def layout(row: int, epoch: int) -> list[tuple[int, int]]:
        start = offset(epoch) + row * size
        return [(start, min(size, inputs - start))]

    last = min(inputs, num_rows * size) - (num_rows - 1) * size
    num_columns = (num_rows - 1) * int(costs[size]) + int(costs[last])
    return RowPlan(corpus, row_length, lookahead, num_rows, 1, num_columns, settings, layout)


# Whole documents.


def _pack(
    corpus: Corpus, row_length: int, lookahead: int, costs: np.ndarray, seed: int | None, settings: dict[str, Any]
) -> RowPlan:
    if corpus.directory is None:
        with tempfile.TemporaryDirectory() as folder:
            facts = _write_rows(Path(folder), corpus, row_length, lookahead, costs)
            starts, lengths, ends = (np.array(array) for array in _read_rows(Path(folder)))
    else:
        identity = hashlib.sha256(json.dumps([_WINDOW, settings], sort_keys=True).encode()).hexdigest()
        folder = corpus.directory / f"rows-{identity[:16]}"

        def make() -> None:
            with atomic_folder(folder) as temporary:
                _write_rows(temporary, corpus, row_length, lookahead, costs)

        contents = Contents(corpus.directory.parent / MEMORY)
        stored = open_or_make(folder / "rows.json", contents, make, name=corpus.name, what="planning the rows of")
        facts = {name: stored[name] for name in ("num_rows", "max_segments", "num_columns")}
        starts, lengths, ends = _read_rows(folder)
    if not facts["num_rows"]:
        raise _nothing(corpus)
    reads = 0

    def layout(row: int, epoch: int) -> list[tuple[int, int]]:
        nonlocal reads
        first, last = int(ends[row]), int(ends[row + 1])
        stretches = list(zip(starts[first:last].tolist(), lengths[first:last].tolist(), strict=True))
        reads += 1
        if reads % _READS_TO_RELEASE == 0:
            for array in (starts, lengths, ends):
                release(array)
        return stretches

    return RowPlan(corpus, row_length, lookahead, settings=settings, layout=layout, **facts)


def _write_rows(folder: Path, corpus: Corpus, row_length: int, lookahead: int, costs: np.ndarray) -> dict[str, int]:
    """Plans window after window into the folder's files; returns the counts, which rows.json holds too."""
    num_rows = max_segments = num_columns = pieces = 0
    with (
        (folder / "starts.bin").open("wb") as starts_file,
        (folder / "lengths.bin").open("wb") as lengths_file,
        (folder / "ends.bin").open("wb") as ends_file,
    ):
        ends_file.write(np.zeros(1, np.int64).tobytes())
        for starts, lengths in _windows(corpus, lookahead, len(costs) - 1):
            rows = plan_rows(costs[lengths], row_length, row_length)
            order = np.fromiter((i for row in rows for i in row), np.int64, len(starts))
            sizes = np.fromiter((len(row) for row in rows), np.int64, len(rows))
            starts_file.write(starts[order].tobytes())
            lengths_file.write(lengths[order].astype(np.int32).tobytes())
            ends_file.write((pieces + np.cumsum(sizes)).tobytes())
            pieces += len(starts)
            num_rows += len(rows)
            max_segments = max(max_segments, int(sizes.max()))
            num_columns += int(costs[lengths].sum())
            release(corpus.offsets)
    facts = {"num_rows": num_rows, "max_segments": max_segments, "num_columns": num_columns}
    seal(folder / "rows.json", facts)
    return facts


def _read_rows(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns int64 [P] starts and int32 [P] lengths of the pieces, and int64 [num_rows + 1] where each row begins."""
    types = {"starts": np.int64, "lengths": np.int32, "ends": np.int64}
    starts, lengths, ends = (map_array(folder / f"{name}.bin", dtype) for name, dtype in types.items())
    return starts, lengths, ends


def _windows(corpus: Corpus, lookahead: int, longest: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields starts and input tokens (int64) of the documents' pieces, in order, in windows of bounded size."""
    waiting = [np.zeros((2, 0), np.int64)]
    for first in range(0, corpus.num_documents, _DOCUMENTS):
        offsets = np.array(corpus.offsets[first : first + _DOCUMENTS + 1])
        waiting.append(_pieces(offsets, lookahead, longest))
        if sum(part.shape[1] for part in waiting) >= _WINDOW:
            ready = np.concatenate(waiting, axis=1)
            whole = ready.shape[1] // _WINDOW * _WINDOW
            for k in range(0, whole, _WINDOW):
                yield ready[0, k : k + _WINDOW], ready[1, k : k + _WINDOW]
            waiting = [ready[:, whole:]]
    rest = np.concatenate(waiting, axis=1)
    if rest.shape[1]:
        yield rest[0], rest[1]


def _pieces(offsets: np.ndarray, lookahead: int, longest: int) -> np.ndarray:
    """Returns int64 [2, P]: start and input tokens of each piece of the documents that these offsets bound."""
    inputs = np.maximum(np.diff(offsets) - lookahead, 0)
    counts = -(-inputs // longest)
    document = np.repeat(np.arange(len(inputs)), counts)
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = np.minimum(longest, inputs[document] - within * longest)
    return np.stack([offsets[document] + within * longest, lengths])
