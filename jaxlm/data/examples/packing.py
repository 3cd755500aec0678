"""Packing: which examples share a row, and the arrays of one packed batch (layout: docs/design.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jaxlm.data.examples.example import Batch, Example


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
    *,
    num_rows: int,
    row_length: int,
    slots: int,
    pad_id: int,
    pool: str = "first",
) -> Batch:
    """Lay rows of examples out as the arrays of docs/design.md, "The packed batch".

    Args:
        examples: the split; also where it is all padding, its first label gives the labels' shape and dtype.
        rows: indices into `examples`; row r of the batch holds `rows[r]`, in slot order.
        num_rows: R; the rows that `rows` leaves over are empty.
        row_length: T.
        slots: S.
        pad_id: token id of padding.
        pool: which token of an example `slot_positions` names, its "first" or its "last".

    Raises:
        ValueError: too many rows, too many examples in a row, or a row that overflows; or no example at all.
    """
    if not examples:
        raise ValueError("no examples: nothing to batch")
    if len(rows) > num_rows:
        raise ValueError(f"{len(rows)} rows do not fit a batch of {num_rows}")
    members = [examples[i] for row in rows for i in row]
    sizes = np.asarray([len(row) for row in rows], np.int64)
    lengths = np.asarray([len(example.ids) for example in members], np.int64)
    row_of, slot_of = np.repeat(np.arange(len(rows)), sizes), _ranges(sizes)
    ends = np.cumsum(lengths)
    row_starts = np.append(0, ends)[np.cumsum(sizes) - sizes]  # tokens before each row
    columns = ends - lengths - row_starts[row_of]
    if sizes.size and sizes.max() > slots:
        raise ValueError(f"row {sizes.argmax()} holds {sizes.max()} examples, but a row has {slots} slots")
    if lengths.size and (columns + lengths).max() > row_length:
        example = members[int((columns + lengths).argmax())]
        raise ValueError(f"example {example.index} ({len(example.ids)} tokens) overflows its row of {row_length}")

    positions = _ranges(lengths)
    target = np.repeat(row_of * row_length + columns, lengths) + positions
    shape, first = (num_rows, row_length), examples[0].label

    def scatter(values: np.ndarray | Iterable[np.ndarray], fill: int = 0) -> np.ndarray:
        out = np.full(num_rows * row_length, fill, np.int32)
        if members:
            out[target] = values if isinstance(values, np.ndarray) else np.concatenate(list(values))
        return out.reshape(shape)

    def by_slot(values: Sequence[float] | np.ndarray, dtype: type | np.dtype, fill: int = 0) -> np.ndarray:
        out = np.full((num_rows, slots), fill, dtype)
        out[row_of, slot_of] = values
        return out

    labels = np.zeros((num_rows, slots, *first.shape), first.dtype)
    if members:
        labels[row_of, slot_of] = np.stack([example.label for example in members])
    return {
        "tokens": scatter((example.ids for example in members), pad_id),
        "segment_ids": scatter(np.repeat(slot_of + 1, lengths)),
        "positions": scatter(positions),
        "token_types": scatter(example.type_ids for example in members),
        "slot_positions": by_slot(columns if pool == "first" else columns + lengths - 1, np.int32),
        "labels": labels,
        "weights": by_slot([example.weight for example in members], np.float32),
        "examples": by_slot([example.index for example in members], np.int32, -1),
    }


def _ranges(sizes: np.ndarray) -> np.ndarray:
    """[2, 3] -> [0, 1, 0, 1, 2]."""
    return np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
