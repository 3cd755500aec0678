"""`RowDataset`: a split of labelled rows, for training and for evaluation."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.loader import TrainLoader, group_members
from jaxlm.data.examples.packing import Rows, build_batch, plan_rows
from jaxlm.data.examples.sampling import sampled_counts
from jaxlm.data.examples.shapes import choose_sizes, eval_shapes, power_of_two, round_up, rounded_up
from jaxlm.data.examples.streams import streams_of
from jaxlm.errors import UserError
from jaxlm.fields import Batch, Field

log = logging.getLogger("jaxlm")


@dataclass(frozen=True)
class RowDataset:
    """Tokenized rows and the fields that they carry; a `Dataset`."""

    split: Examples
    fields: tuple[Field, ...]

    def describe(self) -> dict[str, int]:
        counts = dict(self.split.counts)
        skipped = counts.pop("skipped", 0) + self.split.table.skipped
        return {"rows": len(self.split.table.rows), **counts, "skipped": skipped}

    def examples(self) -> Examples:
        return self.split

    def fingerprint(self) -> str:
        rows = json.dumps(self.split.table.rows, default=str)
        return hashlib.sha256(rows.encode()).hexdigest()

    def loader(self, layout: BatchLayout) -> TrainLoader:
        check_layout(layout)
        if layout.sampling == "natural":
            return TrainLoader(self.split.examples, self.fields, layout)
        if self.split.classes is None:
            raise UserError("data.sampling: rows of this task have no one class to sample by; leave it out")
        loader = TrainLoader(self.split.examples, self.fields, layout, self.split.classes)
        classes = self.split.classes[sorted({example.row for example in self.split.examples})]
        log.info(
            "data.sampling=%s: an epoch is %d steps on %d rows, of %d",
            layout.sampling, loader.steps_per_epoch,
            int(sampled_counts(np.bincount(classes), layout.sampling).sum()), len(classes),
        )  # fmt: skip
        return loader

    def batches(self, layout: BatchLayout) -> Iterator[Batch]:
        """Every example exactly once; the batch's `examples` says which stands where.

        Packed, the split is packed as a whole, longest first, and all batches have one shape. Without packing the
        examples come longest first, one to a row, in at most `max_shapes` row lengths. The last batch is filled up with
        empty rows. Examples of one group stay in one batch.

        Raises:
          ValueError: an example is longer than `row_length`, or rows do not divide among the processes.
        """
        examples, multiple = self.split.examples, layout.share.num_shards
        if not examples:
            return iter(())
        streams = streams_of(examples, layout.row_length or layout.max_length)
        lengths = streams.columns
        shapes = eval_shapes(
            lengths,
            max_length=layout.max_length,
            row_length=layout.row_length,
            row_multiple=multiple,
            packing=layout.packing,
            eval_rows=layout.eval_rows,
        )
        if layout.few_shapes:
            shapes = rounded_up(shapes, layout.max_length, fixed_length=layout.row_length is not None)
        num_rows, row_length, slots = shapes.row_counts[0], shapes.row_length, shapes.slots
        if (members := group_members(examples)) is not None:
            batches = _grouped(lengths, members, num_rows, row_length, slots, packing=layout.packing)
            fullest = max(map(len, batches))
            num_rows = round_up(power_of_two(fullest) if layout.few_shapes else fullest, multiple)
        else:
            order = np.argsort(-lengths, kind="stable")
            planned = plan_rows(lengths[order], row_length, slots, packing=layout.packing)
            rows = [order[row].tolist() for row in planned]
            batches = [rows[k : k + num_rows] for k in range(0, len(rows), num_rows)]
        row_lengths = [row_length] * len(batches)
        if not layout.packing:
            longest = [round_up(int(max(lengths[row[0]] for row in batch)), 8) for batch in batches]
            needs = [min(power_of_two(n, 32) if layout.few_shapes else n, row_length) for n in longest]
            sizes = choose_sizes(needs, layout.max_shapes)
            row_lengths = [next(size for size in sizes if size >= need) for need in needs]
        local = layout.share.rows(num_rows)
        return (
            self._batch(
                examples,
                [batch[i] if i < len(batch) else [] for i in local],
                streams.row_lengths(length),
                slots,
                layout,
            )
            for batch, length in zip(batches, row_lengths, strict=True)
        )

    def _batch(
        self,
        examples: Sequence[Example],
        rows: Rows,
        row_lengths: Mapping[str, int],
        slots: int,
        layout: BatchLayout,
    ) -> Batch:
        return build_batch(
            examples,
            rows,
            self.fields,
            num_rows=len(rows),
            row_lengths=row_lengths,
            slots=slots,
            pad_id=layout.pad_id,
            groups=self.split.grouped,
        )


def check_layout(layout: BatchLayout) -> None:
    """Raises UserError where settings of a layout contradict each other."""
    if layout.order == "balanced" and (layout.batch_tokens or not layout.packing):
        raise UserError(
            "data.batch_order=balanced: expected train.batch_size and data.packing=true; batches of "
            "train.batch_tokens are filled as they are, and padding would only grow by long and short examples in "
            "one batch"
        )


def _grouped(
    lengths: np.ndarray, members: Sequence[np.ndarray], num_rows: int, row_length: int, slots: int, *, packing: bool
) -> list[Rows]:
    """Batches of whole groups, about `num_rows` rows each: as many groups as the mean group lets fit."""
    per_row = row_length / float(lengths.mean()) if packing else 1.0
    mean_group = sum(map(len, members)) / len(members)
    size = max(1, int(num_rows * per_row / mean_group))
    batches = []
    for start in range(0, len(members), size):
        chosen = np.concatenate(members[start : start + size])
        planned = plan_rows(lengths[chosen], row_length, slots, packing=packing)
        batches.append([chosen[row].tolist() for row in planned])
    return batches
