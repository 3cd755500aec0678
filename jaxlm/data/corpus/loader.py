"""Batches of rows of corpora: the endless, resumable training loader and the passes over an evaluation corpus."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.data.corpus.mixture import Mixture
from jaxlm.data.corpus.row_plan import RowPlan, Segment
from jaxlm.data.examples.order import epoch_order
from jaxlm.data.examples.shapes import Shapes
from jaxlm.data.resumable import ResumableBatches, batches_by_step
from jaxlm.fields import Batch
from jaxlm.parallel.share import Share

BuildRow = Callable[[list[Segment], np.random.Generator], dict[str, np.ndarray]]
"""Makes the arrays of one row, without a leading axis and of the same shapes for all rows, from its segments and a
source of randomness of the row's own; of no segments, a row that is all padding and counts nothing."""

ALL = Share()
_TRAINING, _EVALUATION = 0x7A, 0xE7  # keep the two kinds of randomness apart


class CorpusLoader(ResumableBatches):
    """Endless training batches of a fixed number of rows, a function of (corpora, settings, seed, step) alone.

    The rows of a part come in an order drawn from (seed, epoch of that part), each once an epoch; of several parts,
    `Mixture` says whose turn it is. Step s consists of the draws s * rows to (s + 1) * rows - 1, whichever epochs they
    fall into. Grain maps step numbers to batches ahead of use, so its iterator's state is one number and any step is
    reached without replay. Each process builds its share of the global batch's rows.

    Args:
        parts: the plan of each corpus and its weight in the mixture.
        build: makes the arrays of a row; its generator depends on the seed and the number of the draw alone, so that
            masks are fresh in every epoch, the same after a resume, and the same for any number of processes.
        rows: rows of a (global) batch.
        seed: decides the order, and what `build` draws.
        share: which of the rows this process builds.
        settings: what else decides the batches, `build`'s settings above all, under names for messages.

    Attributes:
        shapes: the one (global) batch shape; its slots are the most segments in a row.
        steps_per_epoch: steps in which as many rows are drawn as all parts have, rounded up.
        padding_share: padding columns over all columns.
        fingerprint: hex SHA-256 of the rows and of every setting that decides the batches; not of the processes.

    Raises:
        UserError: a weight is too small to be kept exactly.
        ValueError: rows that do not divide among the processes, or parts whose rows are not equally long.
    """

    def __init__(
        self,
        parts: Sequence[tuple[RowPlan, float]],
        *,
        build: BuildRow,
        rows: int,
        seed: int,
        share: Share = ALL,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._plans, weights = [plan for plan, _ in parts], [weight for _, weight in parts]
        row_length = common_row_length(self._plans)
        self._local = share.rows(rows)
        self._build_row, self._rows, self._seed = build, rows, seed
        self._mixture = Mixture(weights, seed)
        self._order = functools.lru_cache(maxsize=2 * len(parts))(self._draw_order)
        self.shapes = Shapes((row_length,), max(plan.max_segments for plan in self._plans), (rows,), rows)
        self.steps_per_epoch = -(-sum(plan.num_rows for plan in self._plans) // rows)
        shares = self._mixture.counts / self._mixture.counts.sum()
        filled = [plan.num_columns / (plan.num_rows * row_length) for plan in self._plans]
        self.padding_share = 1 - float(shares @ np.asarray(filled))
        identity = {
            "corpora": [plan.corpus.fingerprint for plan in self._plans],
            "settings": {
                "seed": seed,
                "the rows of a batch": rows,
                "the weights of data.train.mixture": weights,
                **self._plans[0].settings,
                **(settings or {}),
            },
            "order": order_digest(seed),
        }
        self._begin(identity, batches_by_step(self._build))

    def _build(self, step: int) -> Batch:
        return stack([self._row(step * self._rows + i) for i in self._local])

    def _row(self, draw: int) -> dict[str, np.ndarray]:
        part, number = self._mixture.locate(draw)
        plan = self._plans[part]
        epoch, place = divmod(number, plan.num_rows)
        segments = plan.segments(int(self._order(part, epoch)[place]), epoch)
        return self._build_row(segments, row_generator(self._seed, draw))

    def _draw_order(self, part: int, epoch: int) -> np.ndarray:
        """Each part has orders of its own."""
        return epoch_order(self._plans[part].num_rows, self._seed, epoch * len(self._plans) + part)


def corpus_eval_batches(
    plans: Sequence[RowPlan],
    build: BuildRow,
    rows: int,
    *,
    seed: int = 0,
    share: Share = ALL,
) -> Iterator[Batch]:
    """Every row of every plan once, in order, in batches of `rows` rows; the last is filled up with empty ones.

    What `build` draws depends on the seed and the row alone, so that every evaluation masks the same tokens.

    Args:
        plans: of the evaluation corpus; several where it is made of several.
        build, share: as in `CorpusLoader`.
        rows: global rows of a batch.

    Raises:
        ValueError: as in `CorpusLoader`.
    """
    common_row_length(plans)
    local = share.rows(rows)
    starts = np.cumsum([0, *(plan.num_rows for plan in plans)])

    def row(number: int) -> dict[str, np.ndarray]:
        segments: list[Segment] = []
        if number < starts[-1]:
            part = int(np.searchsorted(starts, number, side="right")) - 1
            segments = plans[part].segments(number - int(starts[part]))
        return build(segments, np.random.default_rng([seed, number, _EVALUATION]))

    return (stack([row(first + i) for i in local]) for first in range(0, int(starts[-1]), rows))


def row_generator(seed: int, draw: int) -> np.random.Generator:
    """The randomness of one row of training."""
    return np.random.default_rng([seed, draw, _TRAINING])


def stack(rows: list[dict[str, np.ndarray]]) -> Batch:
    """[T] arrays of R rows -> [R, T]."""
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


def common_row_length(parts: Sequence[RowPlan]) -> int:
    """The row length that all parts have.

    Raises:
        ValueError: there is no part, or they differ.
    """
    row_lengths = {part.row_length for part in parts}
    if len(row_lengths) != 1:
        raise ValueError(f"expected parts of one row length; found {sorted(row_lengths)}")
    return row_lengths.pop()


def order_digest(seed: int) -> str:
    """Tells whether this release of NumPy draws what another drew."""
    digest = hashlib.sha256(epoch_order(1000, seed, 0).tobytes())
    digest.update(row_generator(seed, 0).random(16).tobytes())
    return digest.hexdigest()
