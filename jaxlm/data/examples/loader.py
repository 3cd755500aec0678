"""The endless, resumable training loader of labelled rows."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.example import Example
from jaxlm.data.examples.order import Order, make_order
from jaxlm.data.examples.packing import Rows, build_batch, fill_rows, plan_rows
from jaxlm.data.examples.sampling import make_draw
from jaxlm.data.examples.shapes import Shapes, choose_shapes, members_of, token_shapes
from jaxlm.data.examples.streams import DECODER, example_lengths, streams_of
from jaxlm.data.resumable import ResumableBatches, batches_by_step
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field


class _ExamplePlan:
    """Step -> rows; every step has `batch_size` examples (or groups), but the last of an epoch, which has the rest.

    Args:
      order: permutes examples, or the groups whose `members` are given.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        shapes: Shapes,
        packing: bool,
        order: Order,
        members: Sequence[np.ndarray] | None,
    ) -> None:
        self.steps_per_epoch = -(-len(order(0)) // batch_size)
        self._lengths, self._batch_size, self._shapes, self._packing = lengths, batch_size, shapes, packing
        self._order, self._members = order, members

    def rows(self, step: int) -> Rows:
        epoch, k = divmod(step, self.steps_per_epoch)
        drawn = self._order(epoch)[k * self._batch_size : (k + 1) * self._batch_size]
        chosen = members_of(drawn, self._members)
        local = plan_rows(self._lengths[chosen], self._shapes.row_length, self._shapes.slots, packing=self._packing)
        return [chosen[row].tolist() for row in local]


class _TokenPlan:
    """Step -> rows where every step fills a fixed number of rows, with as many examples as that takes.

    Args:
      order: draws examples, or rows of the table whose `members` are given.
    """

    def __init__(self, lengths: np.ndarray, shapes: Shapes, order: Order, members: Sequence[np.ndarray] | None) -> None:
        self._lengths, self._shapes, self._order, self._members = lengths, shapes, order, members
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
        coming = iter(members_of(self._order(epoch), self._members).tolist())
        waiting = list(itertools.islice(coming, look_ahead))
        batches: list[Rows] = []
        while waiting:
            filled, waiting = fill_rows(waiting, lengths, row_length, self._shapes.slots, rows)
            waiting.extend(itertools.islice(coming, look_ahead - len(waiting)))
            batches.append(filled)
        return batches


class TrainLoader(ResumableBatches):
    """Endless training batches, a function of (examples, layout, step) alone.

    Epoch e visits every example once, or as often as `layout.sampling` says, in an order drawn from (seed, e); no batch
    straddles two epochs. Grain maps step numbers to batches ahead of use, so its iterator's state is one number and any
    step is reached without replay. With several processes each builds only its share of the rows; all shares together
    are the batch that one process would have. Examples of one group are drawn together and count as one example of
    `batch_size`.

    Args:
      examples: the split, at least one example.
      fields: what the examples carry beside their tokens.
      layout: with `order` "balanced", batches hold nearly equal numbers of tokens (`order.balanced_order`). With
        `sampling`, rows of the table are drawn, and all examples of a row come together and count as one.
      classes: int [rows of the table], what `sampling` goes by; -1: a row without examples.

    Attributes:
      shapes: the (global) batch shapes; a later epoch that packs worse than all that were simulated adds one.
      steps_per_epoch: steps of one epoch; with `batch_tokens`, of the first.
      padding_share: padding columns over all columns of the first epoch.
      fingerprint: hex SHA-256 of the examples and of every setting that decides which of them share a batch, in which
        order; not of the number of rows and processes, unless `batch_tokens` lets them decide that too.

    Raises:
      UserError: no example, or one longer than `row_length`; groups with `batch_tokens`.
      ValueError: rows that do not divide among the processes, or not exactly one of `batch_size`, `batch_tokens`.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        fields: Sequence[Field],
        layout: BatchLayout,
        classes: np.ndarray | None = None,
    ) -> None:
        layout.train_share.rows(layout.train_multiple)  # shows now if it does not divide
        self._examples, self._fields, self._layout = examples, fields, layout
        self._streams = streams_of(examples, layout.row_length or layout.max_length)
        self._lengths = lengths = self._streams.columns
        members = group_members(examples)
        self._grouped = members is not None
        self._draw: Order | None = None
        if layout.sampling != "natural":
            if classes is None or members is not None:
                raise ValueError("expected rows that have a class each, to sample by")
            members = row_members(examples)
            used = sorted({example.row for example in examples})
            self._draw = make_draw(classes[used], layout.sampling, layout.seed)
        shaped: dict[str, Any] = {
            "max_length": layout.max_length,
            "row_length": layout.row_length,
            "row_multiple": layout.train_multiple,
            "packing": layout.packing,
        }
        settings: dict[str, Any] = {
            "seed": layout.seed,
            "data.packing": layout.packing,
            "data.batch_order": layout.order,
        }
        if not isinstance(layout.sampling, str):
            settings["data.sampling"] = layout.sampling.model_dump()
        elif layout.sampling != "natural":
            settings["data.sampling"] = layout.sampling
        by_example = self._draw or make_order("random", lengths, 1, layout.seed)
        self._plan: _ExamplePlan | _TokenPlan
        if layout.batch_size is not None and layout.batch_tokens is None:
            size = layout.batch_size
            units = lengths if members is None else np.asarray([lengths[group].sum() for group in members])
            drawn = make_order(layout.order, units, size, layout.seed, self._draw)
            self.shapes = choose_shapes(
                lengths, batch_size=size, max_shapes=layout.max_shapes, order=drawn, members=members, **shaped
            )
            self._plan = _ExamplePlan(lengths, size, self.shapes, layout.packing, drawn, members)
            settings["train.batch_size"] = size
        elif layout.batch_tokens is not None and layout.batch_size is None and not self._grouped:
            self.shapes = token_shapes(lengths, batch_tokens=layout.batch_tokens, **shaped)
            self._plan = _TokenPlan(lengths, self.shapes, by_example, members)
            settings["train.batch_tokens"] = layout.batch_tokens
            settings["the number of rows"] = self.shapes.row_counts[0]
            settings["the row length"] = self.shapes.row_length
            settings["the slots of a row"] = self.shapes.slots
        elif self._grouped and layout.batch_size is None:
            raise UserError(
                "train.batch_tokens: examples of this task belong together in groups, as the choices of a question; "
                "expected train.batch_size"
            )
        else:
            raise ValueError("expected either batch_size or batch_tokens")
        self.steps_per_epoch = self._plan.steps_per_epoch
        self.padding_share = self._padding_share()
        # The order is a part of its own: another release of NumPy may draw another permutation from the same seed.
        identity = {
            "examples": _digest(examples, fields),
            "settings": settings,
            "order": hashlib.sha256(by_example(0).tobytes()).hexdigest(),
        }
        self._begin(identity, batches_by_step(self._build))

    def _shape(self, rows: Rows) -> tuple[int, int]:
        return self.shapes.fit(len(rows), int(self._lengths[[i for row in rows for i in row]].max()))

    def _build(self, step: int) -> Batch:
        rows = self._plan.rows(step)
        num_rows, row_length = self._shape(rows)
        local = [rows[i] if i < len(rows) else [] for i in self._layout.train_share.rows(num_rows)]
        return build_batch(
            self._examples,
            local,
            self._fields,
            num_rows=len(local),
            row_lengths=self._streams.row_lengths(row_length),
            slots=self.shapes.slots,
            pad_id=self._layout.pad_id,
            groups=self._grouped,
        )

    def _padding_share(self) -> float:
        plans = [self._plan.rows(step) for step in range(self.steps_per_epoch)]
        shapes = [self._shape(rows) for rows in plans]
        tokens = self._streams.tokens
        if self._draw is not None:
            tokens = sum(int(self._lengths[i]) for rows in plans for row in rows for i in row)
        return 1 - tokens / sum(rows * self._streams.cells(length) for rows, length in shapes)


def group_members(examples: Sequence[Example]) -> list[np.ndarray] | None:
    """Indices of the examples of each group, in order of their first; None where no example has a group."""
    if all(example.group < 0 for example in examples):
        return None
    members: dict[tuple[bool, int], list[int]] = {}
    for i, example in enumerate(examples):
        alone = example.group < 0
        members.setdefault((alone, i if alone else example.group), []).append(i)
    return [np.asarray(indices) for indices in members.values()]


def row_members(examples: Sequence[Example]) -> list[np.ndarray] | None:
    """Indices of the examples of each row of the table that has any; None where each has one."""
    rows, first = np.unique([example.row for example in examples], return_index=True)
    return None if len(rows) == len(examples) else np.split(np.arange(len(examples)), first[1:])


def _digest(examples: Sequence[Example], fields: Sequence[Field]) -> str:
    """SHA-256 over what the examples hold, lengths included so that no two lists of examples look alike."""
    digest = hashlib.sha256(example_lengths(examples).tobytes())
    digest.update(np.asarray([(example.row, example.group) for example in examples], np.int64).tobytes())
    digest.update(np.asarray([example.weight for example in examples], np.float64).tobytes())
    digest.update(repr(fields).encode())
    targets = [f"{DECODER}tokens"] if examples and f"{DECODER}tokens" in examples[0].arrays else []
    for name in ("tokens", *targets, *(field.name for field in fields)):
        for example in examples:
            digest.update(np.ascontiguousarray(example.arrays[name]).tobytes())
    return digest.hexdigest()
