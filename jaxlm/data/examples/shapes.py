"""Batch shapes: the few [rows, row length] that keep both padding and the number of compilations small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.examples.order import Order, epoch_order, make_order
from jaxlm.data.examples.packing import plan_rows
from jaxlm.errors import UserError

_LENGTH_MULTIPLE = 8  # vector and tensor-core tiles
_SIMULATED_EXAMPLES, _SIMULATED_EPOCHS = 2**16, 16  # what row counts are chosen on: whole epochs, the first always
_SAMPLED_EXAMPLES = 4096  # what row length and slots are chosen on: whole batches, eight at least
_EVAL_TOKENS = 4096
# Costs in units of one token's pass through the layers: attention adds 4TD to the 24D^2 operations of a layer, about
# T/2048 at BERT widths; a slot costs the last layer, but for its keys and values, and the head.
_ATTENTION_COST = 1 / 2048
_SLOT_COST = 1 / 8


@dataclass(frozen=True)
class Shapes:
    """The batch shapes of one loader: packed, one row length and some row counts; padded, the other way round.

    Attributes:
        row_lengths: allowed T, ascending.
        slots: S.
        row_counts: allowed R, ascending, multiples of `row_multiple`.
        row_multiple: what every R is a multiple of.
    """

    row_lengths: tuple[int, ...]
    slots: int
    row_counts: tuple[int, ...]
    row_multiple: int = 1

    @property
    def row_length(self) -> int:
        """The longest T."""
        return self.row_lengths[-1]

    def fit(self, num_rows: int, longest: int) -> tuple[int, int]:
        """Smallest allowed (R, T) for a batch that needs `num_rows` rows and holds an example of `longest` tokens.

        More rows than the largest count gives a count of its own: one more compilation, where a later epoch packs
        worse than every epoch that the counts were chosen on.
        """
        rows = next((n for n in self.row_counts if n >= num_rows), round_up(num_rows, self.row_multiple))
        return rows, next(n for n in self.row_lengths if n >= longest)


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is at least `value`."""
    return -(-value // multiple) * multiple


def choose_sizes(needs: Sequence[int] | np.ndarray, max_sizes: int) -> tuple[int, ...]:
    """At most `max_sizes` sizes that cover every need at the least total, each need taking the smallest size >= it.

    Exact dynamic programme over the distinct needs: best[j] = min over i < j of best[i] + need[j] * count(i..j).

    Returns:
        Sizes, ascending; each is one of `needs`, the last is their maximum.
    """
    values, counts = np.unique(np.asarray(needs, np.int64), return_counts=True)
    if len(values) <= max_sizes:
        return tuple(values.tolist())
    before = np.append(0, np.cumsum(counts))
    best = np.append(0.0, np.full(len(values), np.inf))
    choices: list[np.ndarray] = []
    for _ in range(max_sizes):
        total = best[:, None] + values[None, :] * (before[None, 1:] - before[:, None])  # [i, j]
        total[np.tril_indices(len(values) + 1, -1, len(values))] = np.inf
        choices.append(np.append(0, total.argmin(axis=0)))
        best = np.append(0.0, total.min(axis=0))
    sizes, j = [], len(values)
    for choice in reversed(choices):
        if j == 0:
            break
        sizes.append(int(values[j - 1]))
        j = int(choice[j])
    return tuple(reversed(sizes))


def choose_shapes(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_size: int,
    max_shapes: int,
    max_length: int,
    row_length: int | None = None,
    row_multiple: int = 1,
    packing: bool = True,
    order: Order | None = None,
    members: Sequence[np.ndarray] | None = None,
) -> Shapes:
    """Shapes for training batches of exactly `batch_size` examples, chosen by packing the first epochs as they come.

    Args:
        lengths: tokens of each example.
        batch_size: examples per step.
        max_shapes: most distinct shapes.
        max_length: bound of the row length chosen here.
        row_length: row length to use; None: the multiple of 8 between the longest example and `max_length` that costs
            least, padding first, attention second.
        row_multiple: what the rows of a batch must be divisible by (data-parallel devices x accumulation).
        packing: False: one example to a row, length buckets instead of row counts.
        order: the epochs' orders; None: those of `epoch_order` with seed 0.
        members: the examples of each group that `order` permutes; None: it permutes examples.

    Raises:
        UserError: an example is longer than the given `row_length`.
    """
    lengths = _checked(lengths, row_length)
    order = order or make_order("random", lengths, batch_size, 0)
    num_epochs = min(max(1, _SIMULATED_EXAMPLES // len(lengths)), _SIMULATED_EPOCHS)
    drawn = [batch for epoch in range(num_epochs) for batch in _batches(order(epoch), batch_size)]
    batches = [lengths[members_of(batch, members)] for batch in drawn]
    if not packing:
        longest = row_length or round_up(int(lengths.max()), _LENGTH_MULTIPLE)
        maxima = [min(round_up(int(batch.max()), _LENGTH_MULTIPLE), longest) for batch in batches]
        if max(maxima) < (most := min(round_up(int(lengths.max()), _LENGTH_MULTIPLE), longest)):
            maxima.append(most)  # an example that the simulated epochs did not draw
        rows = round_up(max(map(len, batches)), row_multiple)
        return Shapes(choose_sizes(maxima, max_shapes), 1, (rows,), row_multiple)
    sample = batches[: max(8, _SAMPLED_EXAMPLES // batch_size)]
    row_length, slots = _choose_row(lengths, sample, max_length, row_length, row_multiple, max_shapes)
    needs = _rows_needed(batches, row_length, slots, row_multiple)
    return Shapes((row_length,), slots, choose_sizes(needs, max_shapes), row_multiple)


def token_shapes(
    lengths: Sequence[int] | np.ndarray,
    *,
    batch_tokens: int,
    max_length: int,
    row_length: int | None = None,
    row_multiple: int = 1,
    packing: bool = True,
) -> Shapes:
    """The one shape of batches of about `batch_tokens` tokens; arguments as in `choose_shapes`."""
    lengths = _checked(lengths, row_length)
    if packing:
        size = max(1, int(batch_tokens / lengths.mean()))
        sample = lengths[epoch_order(len(lengths), 0, 0)[: max(8 * size, _SAMPLED_EXAMPLES)]]
        batches = _batches(sample, size)
        row_length, slots = _choose_row(lengths, batches, max_length, row_length, 1, len(batches))
    else:
        row_length, slots = row_length or round_up(int(lengths.max()), _LENGTH_MULTIPLE), 1
    return Shapes((row_length,), slots, (round_up(max(1, batch_tokens // row_length), row_multiple),), row_multiple)


def eval_shapes(
    lengths: Sequence[int] | np.ndarray,
    *,
    max_length: int,
    row_length: int | None = None,
    eval_rows: int | None = None,
    row_multiple: int = 1,
    packing: bool = True,
) -> Shapes:
    """The `num_rows`, `row_length` and `slots` that suit `eval_batches` over a split with these lengths.

    Args:
        eval_rows: rows of a batch; None: as many as give about 4,096 tokens, less where the split or its last batch
            would leave them empty.
        lengths, max_length, row_length, row_multiple, packing: as in `choose_shapes`.
    """
    lengths = _checked(lengths, row_length)
    if packing:
        sample = np.sort(lengths)[:: max(1, len(lengths) // _SAMPLED_EXAMPLES)]
        row_length, slots = _choose_row(lengths, [sample], max_length, row_length, 1, 1)
        needed = len(plan_rows(lengths, row_length, slots))
    else:
        row_length, slots = row_length or round_up(int(lengths.max()), _LENGTH_MULTIPLE), 1
        needed = len(lengths)
    if eval_rows is None:
        batches = -(-needed // max(1, _EVAL_TOKENS // row_length))
        eval_rows = -(-needed // batches)
    return Shapes((row_length,), slots, (round_up(eval_rows, row_multiple),), row_multiple)


def rounded_up(shapes: Shapes, max_length: int, *, fixed_length: bool = False) -> Shapes:
    """Returns shapes of at least these sizes that other splits are likely to have, too: powers of two, no longer than
    `max_length` and about 4,096 tokens where they were not before.

    Args:
      fixed_length: the row length was asked for, and stays.
    """
    rows, length = shapes.row_counts[0], shapes.row_length
    if not fixed_length:
        longest = max(length, round_up(max_length, _LENGTH_MULTIPLE))
        length = min(power_of_two(length, 32), longest)
    most = max(rows, _EVAL_TOKENS // length)
    rows = round_up(min(power_of_two(rows), most), shapes.row_multiple)
    slots = shapes.slots if shapes.slots == 1 else power_of_two(shapes.slots, 4)
    return Shapes((length,), slots, (rows,), shapes.row_multiple)


def power_of_two(value: int, least: int = 1) -> int:
    """Smallest power of two that is at least `value` and `least`."""
    return 1 << (max(value, least) - 1).bit_length()


def _choose_row(
    lengths: np.ndarray,
    batches: list[np.ndarray],
    max_length: int,
    row_length: int | None,
    row_multiple: int,
    max_shapes: int,
) -> tuple[int, int]:
    """The (row length, slots) at which these batches cost least, with at most `max_shapes` row counts."""

    def cost(length: int, slots: int) -> float:
        needs = _rows_needed(batches, length, slots, row_multiple)
        sizes = np.asarray(choose_sizes(needs, max_shapes))
        rows = sizes[np.searchsorted(sizes, needs)].sum()
        return float(rows) * (length * (1 + length * _ATTENTION_COST) + slots * _SLOT_COST)

    most = max(len(batch) for batch in batches)
    if row_length is None:
        shortest = round_up(int(lengths.max()), _LENGTH_MULTIPLE)
        spread = np.linspace(shortest, max(shortest, max_length), 16).astype(int)
        candidates = np.unique(spread // _LENGTH_MULTIPLE * _LENGTH_MULTIPLE).tolist()
        row_length = min(candidates, key=lambda length: cost(length, most))
    assert row_length is not None
    fewest = sum(_rows_needed(batches, row_length, most, 1))
    average = min(max(1, int(row_length / lengths.mean())), most)
    # More slots than bring the rows down to the fewest are waste, which ends the search.
    enough = next(s for s in range(average, most + 1) if sum(_rows_needed(batches, row_length, s, 1)) <= fewest)
    return row_length, min(range(average, enough + 1), key=lambda slots: cost(row_length, slots))


def _rows_needed(batches: Sequence[np.ndarray], row_length: int, slots: int, row_multiple: int) -> list[int]:
    return [round_up(len(plan_rows(batch, row_length, slots)), row_multiple) for batch in batches]


def members_of(drawn: np.ndarray, members: Sequence[np.ndarray] | None) -> np.ndarray:
    """Indices of the examples that were drawn: themselves, or the `members` of each group."""
    return drawn if members is None else np.concatenate([members[i] for i in drawn])


def _batches(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[k : k + size] for k in range(0, len(values), size)]


def _checked(lengths: Sequence[int] | np.ndarray, row_length: int | None) -> np.ndarray:
    """`lengths` as int64, at least one and none longer than a given `row_length`."""
    lengths = np.asarray(lengths, np.int64)
    if not lengths.size:
        raise UserError("no examples: the split is empty, or every row of it was dropped")
    worst = int(lengths.argmax())
    if row_length is not None and lengths[worst] > row_length:
        raise UserError(
            f"data.row_length: expected at least {lengths[worst]}, the length of the longest example "
            f"(example {worst}, from 0); found {row_length}. Raise it, leave it out, or lower "
            "data.max_length"
        )
    return lengths
