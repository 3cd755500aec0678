"""Batches of examples: the endless, resumable training loader and the passes over an evaluation split."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples.example import Batch, Example
from jaxlm.data.examples.order import Order, epoch_order, make_order
from jaxlm.data.examples.packing import build_batch, fill_rows, plan_rows
from jaxlm.data.examples.shapes import Shapes, choose_shapes, choose_sizes, eval_shapes, round_up, token_shapes
from jaxlm.data.resumable import ResumableBatches, batches_by_step
from jaxlm.parallel.share import Share

__all__ = ["Shapes", "TrainLoader", "choose_shapes", "eval_batches", "eval_shapes"]

ALL = Share()
Rows = list[list[int]]


class _ExamplePlan:
    """Step -> rows where every step has `batch_size` examples, but the last of an epoch, which has the rest."""

    def __init__(self, lengths: np.ndarray, batch_size: int, shapes: Shapes, packing: bool, order: Order) -> None:
        self.steps_per_epoch = -(-len(lengths) // batch_size)
        self._lengths, self._batch_size, self._shapes, self._packing = lengths, batch_size, shapes, packing
        self._order = order

    def rows(self, step: int) -> Rows:
        epoch, k = divmod(step, self.steps_per_epoch)
        chosen = self._order(epoch)[k * self._batch_size : (k + 1) * self._batch_size]
        local = plan_rows(self._lengths[chosen], self._shapes.row_length, self._shapes.slots, packing=self._packing)
        return [chosen[row].tolist() for row in local]


class _TokenPlan:
    """Step -> rows where every step fills a fixed number of rows, with as many examples as that takes."""

    def __init__(self, lengths: np.ndarray, shapes: Shapes, seed: int) -> None:
        self._lengths, self._shapes, self._seed = lengths, shapes, seed
        self._ends: list[int] = []  # first step after each epoch so far
        self._epoch = functools.lru_cache(maxsize=2)(self._plan)
        self.steps_per_epoch = len(self._epoch(0))

    def rows(self, step: int) -> Rows:
        while not self._ends or step >= self._ends[-1]:
            self._ends.append((self._ends or [0])[-1] + len(self._epoch(len(self._ends))))
        epoch = int(np.searchsorted(self._ends, step, side="right"))
        return self._epoch(epoch)[step - (self._ends[epoch - 1] if epoch else 0)]

    def _plan(self, epoch: int) -> list[Rows]:
        """Batches of one epoch: examples in the epoch's order, later ones drawn forward into the gaps that are left.

        An example that is passed over is first in line for the next batch, so that none waits long.
        """
        rows, row_length = self._shapes.row_counts[-1], self._shapes.row_length
        look_ahead = 8 + int(2 * rows * row_length / self._lengths.mean())
        lengths = self._lengths.tolist()
        coming = iter(epoch_order(len(lengths), self._seed, epoch).tolist())
        waiting = list(itertools.islice(coming, look_ahead))
        batches: list[Rows] = []
        while waiting:
            filled, waiting = fill_rows(waiting, lengths, row_length, self._shapes.slots, rows)
            waiting.extend(itertools.islice(coming, look_ahead - len(waiting)))
            batches.append(filled)
        return batches


class TrainLoader(ResumableBatches):
    """Endless training batches, a function of (examples, settings, seed, step) alone.

    Epoch e visits every example once, in an order drawn from (seed, e); no batch straddles two epochs. Grain maps step
    numbers to batches ahead of use, so its iterator's state is one number and any step is reached without replay.
    With several processes each builds only its share of the rows; all shares together are the batch that one process
    would have.

    Args:
        examples: the split, at least one example.
        batch_size: examples per step, exactly, but for the rest of an epoch.
        batch_tokens: instead of `batch_size`: rows x row length per step, about.
        packing: False puts one example into each row.
        row_length: T; None: chosen from the data (`choose_shapes`).
        max_length: longest T that is chosen from the data.
        max_shapes: most distinct batch shapes; a later epoch that packs worse than all that were simulated adds one.
        row_multiple: what the global number of rows is a multiple of: data-parallel devices x accumulation.
        pad_id: token id of padding.
        seed: decides the order.
        order: "random", or "balanced": batches of nearly equal numbers of tokens (`order.balanced_order`); with
            `batch_tokens`, which fills them anyway, only "random".
        pool: the token of an example that `slot_positions` names, "first" or "last".
        share: which of the rows this process builds.

    Attributes:
        shapes: the (global) batch shapes.
        steps_per_epoch: steps of one epoch; with `batch_tokens`, of the first.
        padding_share: padding columns over all columns of the first epoch.
        fingerprint: hex SHA-256 of the examples and of every setting that decides which of them share a batch, in
            which order; not of `row_multiple` and the processes, unless `batch_tokens` lets them decide that too.

    Raises:
        UserError: no example, or one longer than `row_length`.
        ValueError: rows that do not divide among the processes, or not exactly one of `batch_size`, `batch_tokens`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        batch_size: int | None = None,
        batch_tokens: int | None = None,
        packing: bool,
        row_length: int | None,
        max_length: int,
        max_shapes: int,
        row_multiple: int,
        pad_id: int,
        seed: int,
        order: str = "random",
        pool: str = "first",
        share: Share = ALL,
    ) -> None:
        share.rows(row_multiple)  # shows now if it does not divide
        self._examples, self._pad_id, self._pool = examples, pad_id, pool
        self._share = share
        self._lengths = lengths = _lengths(examples)
        layout = {"max_length": max_length, "row_length": row_length, "row_multiple": row_multiple, "packing": packing}
        settings: dict[str, Any] = {"seed": seed, "data.packing": packing, "data.batch_order": order}
        self._plan: _ExamplePlan | _TokenPlan
        if batch_size is not None and batch_tokens is None:
            drawn = make_order(order, lengths, batch_size, seed)
            self.shapes = choose_shapes(lengths, batch_size=batch_size, max_shapes=max_shapes, order=drawn, **layout)
            self._plan = _ExamplePlan(lengths, batch_size, self.shapes, packing, drawn)
            settings["train.batch_size"] = batch_size
        elif batch_tokens is not None and batch_size is None:
            self.shapes = token_shapes(lengths, batch_tokens=batch_tokens, **layout)
            self._plan = _TokenPlan(lengths, self.shapes, seed)
            settings["train.batch_tokens"] = batch_tokens
            settings["the number of rows"] = self.shapes.row_counts[0]
            settings["the row length"] = self.shapes.row_length
            settings["the slots of a row"] = self.shapes.slots
        else:
            raise ValueError("expected either batch_size or batch_tokens")
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.padding_share = self._padding_share()
        # The order is a part of its own: another release of NumPy may draw another permutation from the same seed.
        identity = {
            "examples": _digest(examples),
            "settings": settings,
            "order": hashlib.sha256(epoch_order(len(lengths), seed, 0).tobytes()).hexdigest(),
        }
        self._begin(identity, batches_by_step(self._build))

    def _shape(self, rows: Rows) -> tuple[int, int]:
        return self.shapes.fit(len(rows), int(self._lengths[[i for row in rows for i in row]].max()))

    def _build(self, step: int) -> Batch:
        rows = self._plan.rows(step)
        num_rows, row_length = self._shape(rows)
        return _local_batch(
            self._examples,
            rows,
            num_rows,
            row_length,
            self.shapes.slots,
            self._pad_id,
            self._pool,
            self._share,
        )

    def _padding_share(self) -> float:
        shapes = [self._shape(self._plan.rows(step)) for step in range(self.steps_per_epoch)]
        return 1 - int(self._lengths.sum()) / sum(rows * length for rows, length in shapes)


def eval_batches(
    examples: Sequence[Example],
    *,
    num_rows: int,
    row_length: int,
    slots: int | None,
    pad_id: int,
    packing: bool,
    pool: str = "first",
    row_multiple: int = 1,
    share: Share = ALL,
    max_shapes: int = 4,
) -> Iterator[Batch]:
    """Every example exactly once, in batches of `num_rows` rows; the batch's `examples` says which stands where.

    Packed, the split is packed as a whole, longest first, and every batch is [num_rows, row_length]. Without packing
    the examples come longest first, one to a row, in at most `max_shapes` row lengths. The last batch is filled up
    with empty rows. `eval_shapes` chooses suitable sizes.

    Args:
        num_rows: global rows of a batch, rounded up to a multiple of `row_multiple`.
        slots: most examples in a row; None: as many as suit the split.
        examples, row_length, pad_id, packing, pool, share: as in `TrainLoader`.

    Raises:
        ValueError: an example is longer than `row_length`, or rows do not divide among the processes.
    """
    share.rows(row_multiple)
    num_rows = round_up(num_rows, row_multiple)
    if not examples:
        return iter(())
    lengths = _lengths(examples)
    if not packing:
        slots = 1
    elif slots is None:
        slots = eval_shapes(lengths, max_length=row_length, row_length=row_length).slots
    order = np.argsort(-lengths, kind="stable")
    planned = plan_rows(lengths[order], row_length, slots, packing=packing)
    rows = [order[row].tolist() for row in planned]
    batches = [rows[k : k + num_rows] for k in range(0, len(rows), num_rows)]
    if packing:
        row_lengths = [row_length] * len(batches)
    else:
        needs = [min(round_up(int(lengths[batch[0][0]]), 8), row_length) for batch in batches]
        sizes = choose_sizes(needs, max_shapes)
        row_lengths = [next(size for size in sizes if size >= need) for need in needs]
    return (
        _local_batch(examples, batch, num_rows, length, slots, pad_id, pool, share)
        for batch, length in zip(batches, row_lengths, strict=True)
    )


def _local_batch(
    examples: Sequence[Example],
    rows: Rows,
    num_rows: int,
    row_length: int,
    slots: int,
    pad_id: int,
    pool: str,
    share: Share,
) -> Batch:
    local = [rows[i] if i < len(rows) else [] for i in share.rows(num_rows)]
    return build_batch(
        examples, local, num_rows=len(local), row_length=row_length, slots=slots, pad_id=pad_id, pool=pool
    )


def _lengths(examples: Sequence[Example]) -> np.ndarray:
    return np.fromiter((len(example.ids) for example in examples), np.int64, len(examples))


def _digest(examples: Sequence[Example]) -> str:
    """SHA-256 over what the examples hold, lengths included so that no two lists of examples look alike."""
    digest = hashlib.sha256(_lengths(examples).tobytes())
    digest.update(np.asarray([example.index for example in examples], np.int64).tobytes())
    digest.update(np.asarray([example.weight for example in examples], np.float64).tobytes())
    digest.update(f"{examples[0].label.dtype} {examples[0].label.shape}".encode())
    for example in examples:
        for array in (example.ids, example.type_ids, example.label):
            digest.update(array.tobytes())
    return digest.hexdigest()
