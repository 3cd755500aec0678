"""Packing: which examples share a row, and the arrays of one packed batch (layout: docs/design.md)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxlm.data.examples.example import Example
from jaxlm.fields import EXAMPLES, GROUPS, Batch, Field

Rows = list[list[int]]
"""Indices of the examples in each row, in slot order."""


def fill_rows(
    examples: Iterable[int], lengths: list[int], row_length: int, slots: int, max_rows: int | None = None
) -> tuple[list[list[int]], list[int]]:
    """Place examples one after another, each into the fullest row that still has room for it (best fit).

    Rows are grouped by free columns, and a bit set tells which groups are occupied, so that a placement costs the same
    however many rows are open. Ties go to the row used last: the outcome is a function of the arguments.

    Args:
        examples: indices into `lengths`, in the order of placement.
        lengths: tokens of each example, none above `row_length`.
        row_length: columns of a row.
        slots: most examples in a row.
        max_rows: rows that may be opened; None: as many as needed.

    Returns:
        The rows, and the examples that found no room, in order.
    """
    rows: list[list[int]] = []
    left_over: list[int] = []
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]  # free columns -> rows
    occupied = 0  # bit n: by_room[n] is not empty
    for i in examples:
        length = lengths[i]
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                occupied ^= 1 << room
        elif max_rows is None or len(rows) < max_rows:
            row, room = len(rows), row_length
            rows.append([])
        else:
            left_over.append(i)
            continue
        rows[row].append(i)
        if len(rows[row]) < slots and room > length:
            by_room[room - length].append(row)
            occupied |= 1 << (room - length)
    return rows, left_over


def plan_rows(
    lengths: Sequence[int] | np.ndarray, row_length: int, slots: int, *, packing: bool = True
) -> list[list[int]]:
    """Spread examples over as few rows as best-fit-decreasing finds.

    Args:
        lengths: tokens of each example.
        row_length: columns of a row.
        slots: most examples in a row.
        packing: False puts each example into a row of its own, in the given order.

    Returns:
        Rows of indices into `lengths`, each index once. Equal input gives equal output.

    Raises:
        ValueError: an example is longer than a row; the message names it.
    """
    lengths = np.asarray(lengths, np.int64)
    if lengths.size and lengths.max() > row_length:
        worst = int(lengths.argmax())
        raise ValueError(f"example {worst} has {lengths[worst]} tokens, but a row holds {row_length}")
    if not packing:
        return [[i] for i in range(len(lengths))]
    return fill_rows(np.argsort(-lengths, kind="stable").tolist(), lengths.tolist(), row_length, slots)[0]


def build_batch(
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    fields: Sequence[Field],
    *,
    num_rows: int,
    row_lengths: Mapping[str, int],
    slots: int,
    pad_id: int,
    groups: bool = False,
) -> Batch:
    """Lays rows of examples out as the arrays of docs/design.md, "The packed batch".

    Args:
      examples: the split.
      rows: indices into `examples`; row b of the batch holds `rows[b]`, in slot order.
      fields: what the examples carry beside the tokens of their streams.
      num_rows: B; the rows that `rows` leaves over are empty.
      row_lengths: columns of each stream's rows, by its prefix: {"": T} or {"": T, "decoder_": U}.
      slots: S.
      pad_id: token id of padding.
      groups: add `groups`.
    Returns:
      Of each stream `tokens`, `segment_ids` (slot + 1; 0 is padding) and `positions`, int32 [B, T]; every field;
      `weights` float32 [B, S] unless a field is called so; `examples` int32 [B, S], -1 for an empty slot.
    Raises:
      ValueError: too many rows, too many examples in a row, or a row that overflows; or no example at all.
    """
    if not examples:
        raise ValueError("no examples: nothing to batch")
    if len(rows) > num_rows:
        raise ValueError(f"{len(rows)} rows do not fit a batch of {num_rows}")
    indices = [i for row in rows for i in row]
    members = [examples[i] for i in indices]
    sizes = np.asarray([len(row) for row in rows], np.int64)
    if sizes.size and sizes.max() > slots:
        raise ValueError(f"row {sizes.argmax()} holds {sizes.max()} examples, but a row has {slots} slots")
    row_of, slot_of = np.repeat(np.arange(len(rows)), sizes), _ranges(sizes)
    columns: dict[str, np.ndarray] = {}
    targets: dict[str, np.ndarray] = {}

    def by_token(stream: str, values: np.ndarray | list[np.ndarray], dtype: Any, fill: float) -> np.ndarray:
        out = np.full(num_rows * row_lengths[stream], fill, dtype)
        if members:
            out[targets[stream]] = values if isinstance(values, np.ndarray) else np.concatenate(values)
        return out.reshape(num_rows, row_lengths[stream])

    def by_slot(values: Sequence[Any] | np.ndarray, dtype: Any, shape: tuple[int, ...], fill: float) -> np.ndarray:
        out = np.full((num_rows, slots, *shape), fill, dtype)
        if members:
            out[row_of, slot_of] = np.asarray(values).reshape(len(members), *shape)
        return out

    batch: Batch = {}
    for stream, row_length in row_lengths.items():
        tokens = [example.arrays[f"{stream}tokens"] for example in members]
        lengths = np.asarray([len(ids) for ids in tokens], np.int64)
        ends = np.cumsum(lengths)
        row_starts = np.append(0, ends)[np.cumsum(sizes) - sizes]  # tokens before each row
        columns[stream] = ends - lengths - row_starts[row_of]
        if lengths.size and (columns[stream] + lengths).max() > row_length:
            worst = int((columns[stream] + lengths).argmax())
            raise ValueError(
                f"example {indices[worst]} ({lengths[worst]} {stream}tokens) overflows its row of {row_length}"
            )
        positions = _ranges(lengths)
        targets[stream] = np.repeat(row_of * row_length + columns[stream], lengths) + positions
        batch[f"{stream}tokens"] = by_token(stream, tokens, np.int32, pad_id)
        batch[f"{stream}segment_ids"] = by_token(stream, np.repeat(slot_of + 1, lengths), np.int32, 0)
        batch[f"{stream}positions"] = by_token(stream, positions, np.int32, 0)
    for field in fields:
        values = [example.arrays[field.name] for example in members]
        if field.per == "token":
            batch[field.name] = by_token(field.stream, values, field.dtype, field.fill)
        elif field.per == "slot":
            batch[field.name] = by_slot(values, field.dtype, field.shape, field.fill)
        else:
            shifted = columns[field.stream] + np.asarray([int(value) for value in values], np.int64)
            batch[field.name] = by_slot(shifted, np.int32, (), field.fill)
    batch.setdefault("weights", by_slot([example.weight for example in members], np.float32, (), 0))
    batch[EXAMPLES] = by_slot(indices, np.int32, (), -1)
    if groups:
        batch[GROUPS] = by_slot([example.group for example in members], np.int32, (), -1)
    return batch


def _ranges(sizes: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
