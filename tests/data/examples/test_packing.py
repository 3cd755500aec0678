"""Row planning, the packed batch's arrays, and the choice of batch shapes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.packed_examples import LENGTHS, ROW, assert_same, fields_of, lengths_of, make_examples, unpack

from jaxlm.data.examples.order import make_order
from jaxlm.data.examples.packing import build_batch, plan_rows
from jaxlm.data.examples.shapes import choose_shapes, choose_sizes, eval_shapes, token_shapes
from jaxlm.errors import UserError


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("slots", [1, 3, 100])
def test_rows_hold_every_example_once_and_none_overflows(kind, slots):
    for seed in range(5):
        lengths = lengths_of(kind, seed)
        rows = plan_rows(lengths, ROW, slots)
        assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
        assert all(1 <= len(row) <= slots and lengths[row].sum() <= ROW for row in rows)
        assert rows == plan_rows(lengths.tolist(), ROW, slots)


def test_rows_are_few():
    """Best-fit-decreasing needs at most 11/9 of the optimum, plus 4 (Johnson 1973); the optimum is at least sum/row."""
    for seed, kind in itertools.product(range(5), ["short", "skewed"]):
        lengths = lengths_of(kind, seed)
        assert len(plan_rows(lengths, ROW, len(lengths))) <= 11 / 9 * np.ceil(lengths.sum() / ROW) + 4
    # Two full rows, 6+4 and 5+3+2, but only where 4 and 3 go to the fullest row that has room.
    assert len(plan_rows([6, 5, 4, 3, 2], 10, 3)) == 2


def test_without_packing_each_example_keeps_its_place():
    assert plan_rows([3, 48, 1], ROW, 1, packing=False) == [[0], [1], [2]]


@pytest.mark.parametrize("packing", [True, False])
def test_an_example_longer_than_a_row_is_named(packing):
    with pytest.raises(ValueError, match="example 1 has 49 tokens, but a row holds 48"):
        plan_rows([3, 49, 5], ROW, 4, packing=packing)


LABELS = {
    "class": lambda i: np.asarray(i + 1, np.int32),
    "target": lambda i: np.asarray(i + 0.5, np.float32),
    "multi-label": lambda i: np.asarray([1, i % 2, i % 3 == 0, 1], np.float32),
}


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("label", LABELS)
def test_a_batch_gives_back_its_examples(kind, label):
    lengths = lengths_of(kind)
    if not lengths.size:
        return
    examples = make_examples(lengths, label=LABELS[label])
    rows = plan_rows(lengths, ROW, 5)
    batch = build_batch(
        examples, rows, fields_of(examples), num_rows=len(rows) + 2, row_lengths={"": ROW}, slots=5, pad_id=99
    )
    assert_same(unpack(batch), examples)
    padding = batch["segment_ids"] == 0
    assert padding.sum() == batch["tokens"].size - lengths.sum()
    assert (batch["tokens"][padding] == 99).all()
    assert not batch["positions"][padding].any() and not batch["token_types"][padding].any()
    dtypes = {key: value.dtype.name for key, value in batch.items()}
    assert dtypes.pop("labels") == examples[0].arrays["labels"].dtype.name and dtypes.pop("weights") == "float32"
    assert set(dtypes.values()) == {"int32"}
    assert batch["tokens"].shape == (len(rows) + 2, ROW)
    assert batch["labels"].shape == (len(rows) + 2, 5, *examples[0].arrays["labels"].shape)


def test_a_batch_of_padding_alone_has_the_same_layout():
    examples = make_examples([4, 5], label=LABELS["multi-label"])
    full, empty = (
        build_batch(examples, rows, fields_of(examples), num_rows=2, row_lengths={"": 16}, slots=3, pad_id=9)
        for rows in ([[0, 1]], [])
    )
    assert {k: (v.shape, v.dtype) for k, v in full.items()} == {k: (v.shape, v.dtype) for k, v in empty.items()}
    assert unpack(empty) == [] and (empty["tokens"] == 9).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0], [1], [2]], "3 rows do not fit a batch of 2"),
        ([[0], [1, 2, 0]], "row 1 holds 3 examples, but a row has 2 slots"),
        ([[0, 1]], r"example 1 \(10 tokens\) overflows its row of 16"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        examples = make_examples([9, 10, 1])
        build_batch(examples, rows, fields_of(examples), num_rows=2, row_lengths={"": 16}, slots=2, pad_id=0)


def test_sizes_are_the_best_there_are():
    """Against every subset of the needs that contains the largest."""
    for seed, max_sizes in itertools.product(range(30), range(1, 5)):
        rng = np.random.default_rng(seed)
        needs = rng.integers(1, 12, rng.integers(1, 40))

        def total(sizes, needs=needs):
            return sum(min(s for s in sizes if s >= need) for need in needs)

        largest = int(needs.max())
        others = sorted(set(needs.tolist()) - {largest})
        best = min(
            total((*chosen, largest))
            for count in range(max_sizes)
            for chosen in itertools.combinations(others, min(count, len(others)))
        )
        sizes = choose_sizes(needs, max_sizes)
        assert len(sizes) <= max_sizes and list(sizes) == sorted(set(sizes)) and sizes[-1] == largest
        assert total(sizes) == best


@pytest.mark.parametrize("kind", sorted(LENGTHS.keys() - {"none"}))
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("row_multiple", [1, 8])
@pytest.mark.parametrize("kind_of_order", ["random", "balanced"])
def test_shapes_cover_the_first_epochs(kind, packing, row_multiple, kind_of_order):
    lengths = lengths_of(kind)
    order = make_order(kind_of_order, lengths, 16, 5)
    shapes = choose_shapes(
        lengths, batch_size=16, max_shapes=3, max_length=64, row_multiple=row_multiple, packing=packing, order=order
    )
    assert len(shapes.row_counts) * len(shapes.row_lengths) <= 3
    assert all(rows % row_multiple == 0 for rows in shapes.row_counts)
    assert lengths.max() <= shapes.row_length <= max(64, -(-lengths.max() // 8) * 8)
    for epoch in range(3):
        for k in range(0, len(lengths), 16):
            chosen = lengths[order(epoch)[k : k + 16]]
            needed = len(plan_rows(chosen, shapes.row_length, shapes.slots, packing=packing))
            rows, row_length = shapes.fit(needed, int(chosen.max()))
            assert rows in shapes.row_counts and rows >= needed and row_length >= chosen.max()


def test_a_batch_beyond_the_largest_count_gets_its_own():
    shapes = choose_shapes(np.full(64, 8), batch_size=16, max_shapes=2, max_length=8, row_multiple=4, packing=True)
    assert shapes.row_counts == (16,) and shapes.fit(17, 8) == (20, 8)


def test_token_batches_have_one_shape_of_that_size():
    lengths = lengths_of("skewed")
    shapes = token_shapes(lengths, batch_tokens=1000, max_length=64, row_multiple=4)
    (rows,) = shapes.row_counts
    assert len(shapes.row_lengths) == 1 and rows % 4 == 0
    assert 1000 - shapes.row_length < rows * shapes.row_length < 1000 + 4 * shapes.row_length
    assert token_shapes(lengths, batch_tokens=10, max_length=64).row_counts == (1,)


def test_slots_cost_hardly_any_rows_and_are_not_wasted():
    lengths = np.clip(np.random.default_rng(0).lognormal(3.0, 0.45, 640), 4, 64).astype(int)
    shapes = choose_shapes(lengths, batch_size=32, max_shapes=4, max_length=64)
    bounded, free = (
        sum(len(plan_rows(lengths[k : k + 32], shapes.row_length, slots)) for k in range(0, 640, 32))
        for slots in (shapes.slots, 32)
    )
    assert bounded <= 1.01 * free
    assert shapes.slots <= 4 * shapes.row_length / lengths.mean()


def test_eval_shapes_spread_rows_evenly():
    shapes = eval_shapes(np.full(33 * 2, 62), max_length=128, row_length=128, packing=True)
    assert shapes.row_counts == (17,)  # 33 rows: 17 + 16, not 32 + 1
    assert eval_shapes([5, 6], max_length=128, row_multiple=8).row_counts == (8,)
    assert eval_shapes([5, 6], max_length=128, eval_rows=3, row_multiple=2).row_counts == (4,)


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_length_that_is_too_short_is_the_users_mistake(packing):
    for choose in (choose_shapes, eval_shapes):
        settings = {"batch_size": 2, "max_shapes": 1} if choose is choose_shapes else {}
        with pytest.raises(
            UserError, match=r"data.row_length: expected at least 40, .* \(example 2, from 0\); found 32"
        ):
            choose([3, 4, 40], max_length=64, row_length=32, packing=packing, **settings)
        with pytest.raises(UserError, match="no examples"):
            choose([], max_length=64, packing=packing, **settings)
