"""`StreamLoader`: training batches of rows that are tokenised as they are drawn, without a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from grain.experimental import ThreadPrefetchDatasetIterator

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.loader import ALL, BuildRow, one_room, order_digest, row_generator, stack
from jaxlm.data.corpus.mixture import Mixture
from jaxlm.data.corpus.row_plan import Cost
from jaxlm.data.corpus.stream import RowStream
from jaxlm.data.examples.example import Batch
from jaxlm.data.examples.shapes import Shapes
from jaxlm.data.resumable import ResumableBatches
from jaxlm.errors import UserError
from jaxlm.parallel.share import Share
from jaxlm.tokenizer.tokenizer import Tokenizer


def open_streams(
    data: DataConfig,
    *,
    text_column: str,
    tokenizer: Tokenizer,
    wrap: str,
    overlap: int,
    overhead: int = 0,
    cost: Cost | None = None,
    seed: int,
) -> list[tuple[RowStream, float]]:
    """The streams of `data.train`, one for each of its mixture's sources, with its weight; arguments as in `RowStream`.

    Raises:
        UserError: no such split, a source that cannot be read, or a setting that needs a tokenised corpus.
    """
    if data.train is None:
        raise UserError("data.train: expected a source of training text")
    sources = [("data.train", data.train)]
    if data.train.mixture is not None:
        sources = [(f"data.train.mixture[{i}]", part) for i, part in enumerate(data.train.mixture)]
    streams = []
    for key, source in sources:
        documents = Documents(source, key=key, split="train", text_column=text_column, on_bad_row=data.on_bad_row)
        stream = RowStream(
            documents, tokenizer, clean=data.clean, wrap=wrap, room=data.max_length, overlap=overlap,
            across_documents=data.across_documents, overhead=overhead, cost=cost, seed=seed,
        )  # fmt: skip
        streams.append((stream, source.weight))
    return streams


class StreamLoader(ResumableBatches):
    """Endless training batches, with the interface of `CorpusLoader`, from streams instead of planned corpora.

    Every process reads and tokenises all of the text, and builds its own rows of it.

    Args:
        parts: each source's stream and its weight in the mixture.
        steps: `train.steps`.
        build, rows, seed, share, settings: as in `CorpusLoader`.

    Attributes:
        shapes, fingerprint: as in `CorpusLoader`.
        steps_per_epoch: None: it is not known how much text there is.
        padding_share: padding columns over all columns of the first rows.

    Raises:
        UserError: no `steps`; a weight that is too small to be kept exactly.
        ValueError: as in `CorpusLoader`.
    """

    steps_per_epoch: None = None

    def __init__(
        self,
        parts: Sequence[tuple[RowStream, float]],
        *,
        build: BuildRow,
        rows: int,
        seed: int,
        steps: int | None,
        share: Share = ALL,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if steps is None:
            raise UserError("train.steps: expected a number with data.tokenize=stream, which does not know its epochs")
        streams, weights = [stream for stream, _ in parts], [weight for _, weight in parts]
        room = one_room(streams)
        self.shapes = Shapes((room,), max(stream.max_segments for stream in streams), (rows,), rows)
        mixture = Mixture(weights, seed)
        shares = mixture.counts / mixture.counts.sum()
        self.padding_share = sum(float(s) * stream.padding_share for s, stream in zip(shares, streams, strict=True))
        identity = {
            "corpora": [stream.fingerprint for stream in streams],
            "settings": {
                "seed": seed,
                "the rows of a batch": rows,
                "the weights of data.train.mixture": weights,
                **streams[0].settings,
                **(settings or {}),
            },
            "order": order_digest(seed),
        }
        batches = _Batches(streams, mixture, build, rows, share.rows(rows), seed)
        self._begin(identity, ThreadPrefetchDatasetIterator(batches, prefetch_buffer_size=4))


class _Batches:
    """The batches one after another, with a state that Grain's prefetching passes on beside each."""

    def __init__(
        self, streams: list[RowStream], mixture: Mixture, build: BuildRow, rows: int, local: list[int], seed: int
    ) -> None:
        self._streams, self._mixture, self._build = streams, mixture, build
        self._rows, self._local, self._seed, self._step = rows, local, seed, 0
        self._held = frozenset(local)

    def __iter__(self) -> _Batches:
        return self

    def __next__(self) -> Batch:
        built: dict[int, dict[str, np.ndarray]] = {}
        for i in range(self._rows):
            draw = self._step * self._rows + i
            segments = next(self._streams[self._mixture.locate(draw)[0]])
            if i in self._held:
                built[i] = self._build(segments, row_generator(self._seed, draw))
        self._step += 1
        return stack([built[i] for i in self._local])

    def get_state(self) -> dict[str, Any]:
        return {"step": self._step, "streams": [stream.get_state() for stream in self._streams]}

    def set_state(self, state: dict[str, Any]) -> None:
        self._step = state["step"]
        for stream, saved in zip(self._streams, state["streams"], strict=True):
            stream.set_state(saved)
