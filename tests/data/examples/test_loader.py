"""The training loader's contract (exact batches, order, resume, processes) and evaluation passes."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.packed_examples import LENGTHS, ROW, assert_same, dataset_of, fields_of, lengths_of, make_examples, unpack

from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.example import Example
from jaxlm.data.examples.loader import TrainLoader
from jaxlm.data.examples.order import balanced_order, epoch_order
from jaxlm.data.examples.packing import build_batch
from jaxlm.errors import UserError
from jaxlm.fields import Field
from jaxlm.parallel.share import Share

KINDS = sorted(LENGTHS.keys() - {"none"})
MODES = {
    "packed": {"batch_size": 16, "packing": True},
    "balanced": {"batch_size": 16, "packing": True, "order": "balanced"},
    "padded": {"batch_size": 16, "packing": False},
    "tokens": {"batch_tokens": 4 * ROW, "packing": True},
    "padded tokens": {"batch_tokens": 4 * ROW, "packing": False},
}


@pytest.fixture
def loader():
    """Makes loaders and closes them after the test."""
    made = []

    def make(examples, **settings):
        layout = BatchLayout(**({"batch_size": None, "max_length": ROW, "seed": 3} | settings))
        made.append(TrainLoader(examples, fields_of(examples), layout))
        return made[-1]

    yield make
    for each in made:
        each.close()


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert np.array_equal(a[key], b[key]), key


def indices(batch):
    return sorted(batch["examples"][batch["examples"] >= 0].tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
def test_every_epoch_holds_every_example_once(loader, kind, mode):
    examples = make_examples(lengths_of(kind))
    train = loader(examples, **MODES[mode])
    first = take(train, train.steps_per_epoch)
    assert_same([found for batch in first for found in unpack(batch)], examples)
    seen, epochs = [], []
    while len(epochs) < 2:  # by content: with batch_tokens, the number of steps may differ
        seen += indices(next(train))
        if len(seen) >= len(examples):
            epochs.append(seen)
            seen = []
    assert [sorted(epoch) for epoch in epochs] == [list(range(len(examples)))] * 2  # and no batch straddles two


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("order", ["random", "balanced"])
def test_a_step_is_exactly_batch_size_examples(loader, kind, packing, order):
    lengths = lengths_of(kind)
    train = loader(make_examples(lengths), batch_size=16, packing=packing, order=order)
    full, rest = divmod(len(lengths), 16)
    expected = [16] * full + [rest] * bool(rest)
    assert train.steps_per_epoch == len(expected)
    assert [len(indices(batch)) for batch in take(train, 2 * len(expected))] == expected * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row_multiple", [1, 4])
def test_shapes_are_few(loader, kind, mode, row_multiple):
    train = loader(make_examples(lengths_of(kind)), max_shapes=3, grad_accum_steps=row_multiple, **MODES[mode])
    batches = take(train, 3 * train.steps_per_epoch)
    shapes = {(*batch["tokens"].shape, batch["weights"].shape[1]) for batch in batches}
    assert len(shapes) <= (1 if "tokens" in mode else 3)
    assert all(rows % row_multiple == 0 for rows, _, _ in shapes)
    first = batches[: train.steps_per_epoch]
    empty = sum(int((batch["segment_ids"] == 0).sum()) for batch in first)
    assert train.padding_share == pytest.approx(empty / sum(batch["tokens"].size for batch in first))


def test_token_batches_are_full_until_the_epoch_ends(loader):
    train = loader(make_examples(lengths_of("skewed")), batch_tokens=4 * ROW, packing=True)
    shares = [float((batch["segment_ids"] > 0).mean()) for batch in take(train, train.steps_per_epoch)]
    assert len(shares) > 5 and min(shares[:-1]) > 0.9


@pytest.mark.parametrize("mode", MODES)
def test_order_is_drawn_from_seed_and_epoch(loader, mode):
    examples = make_examples(lengths_of("all equal"))  # so that the order decides which examples share a batch

    def epochs(seed):
        train = loader(examples, seed=seed, **MODES[mode])
        return [[indices(batch) for batch in take(train, train.steps_per_epoch)] for _ in range(3)]

    again, other = epochs(0), epochs(1)
    assert again == epochs(0)
    assert len({str(epoch) for epoch in again + other}) == 6  # seed 1 is not seed 0 one epoch later, either


def test_order_is_the_same_in_another_process(loader):
    """Hash randomisation, or whatever else a process starts with, plays no part."""
    code = """
import hashlib, itertools, sys
sys.path.insert(0, "tests")
from helpers.packed_examples import fields_of, lengths_of, make_examples
from jaxlm.data.examples.loader import TrainLoader
from jaxlm.data.dataset import BatchLayout
examples = make_examples(lengths_of("skewed"))
train = TrainLoader(examples, fields_of(examples), BatchLayout(batch_size=16, max_length=48, seed=3))
tokens = b"".join(batch["tokens"].tobytes() for batch in itertools.islice(train, 40))
print(hashlib.sha256(tokens).hexdigest(), train.fingerprint)
train.close()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    train = loader(make_examples(lengths_of("skewed")), batch_size=16, packing=True)
    tokens = b"".join(batch["tokens"].tobytes() for batch in take(train, 40))
    assert out == [hashlib.sha256(tokens).hexdigest(), train.fingerprint]


@pytest.mark.parametrize("mode", MODES)
def test_resume_continues_bit_for_bit(loader, mode):
    examples = make_examples(lengths_of("skewed")[:60])
    train = loader(examples, **MODES[mode])
    count = 3 * train.steps_per_epoch + 2
    states, batches = [json.dumps(train.get_state())], []
    for batch in itertools.islice(train, count):
        batches.append(batch)
        states.append(json.dumps(train.get_state()))
    for k in {0, 1, train.steps_per_epoch - 1, train.steps_per_epoch, train.steps_per_epoch + 1, count - 3}:
        resumed = loader(examples, **MODES[mode])
        take(resumed, 2)  # what was prefetched before is not to leak in
        resumed.set_state(json.loads(states[k]))
        assert json.dumps(resumed.get_state()) == states[k]
        assert_equal(take(resumed, count - k), batches[k:])


def test_resume_on_another_mesh_sees_the_same_examples(loader):
    examples = make_examples(lengths_of("skewed"))
    one = loader(examples, batch_size=16, packing=True)
    take(one, 5)
    two = loader(examples, batch_size=16, packing=True, share=Share((1,), 2), max_shapes=1)
    two.set_state(one.get_state())
    for _ in range(20):
        assert set(indices(next(two))) <= set(indices(next(one)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3 and is now 4"),
        ({"order": "balanced"}, "data.batch_order was random and is now balanced"),
        ({"batch_size": 8}, "train.batch_size was 16 and is now 8"),
        ({"packing": False}, "data.packing was True and is now False"),
        ({"batch_size": None, "batch_tokens": 512}, "train.batch_tokens was unset and is now 512"),
    ],
)
def test_a_changed_setting_is_refused_by_name(loader, change, message):
    examples = make_examples(lengths_of("skewed"))
    settings = {"batch_size": 16, "packing": True}
    state = json.loads(json.dumps(loader(examples, **settings).get_state()))
    with pytest.raises(UserError, match=message) as error:
        loader(examples, **(settings | change)).set_state(state)
    assert "examples differ" not in str(error.value)


@pytest.mark.parametrize("what", ["tokens", "token_types", "labels", "swapped", "fewer"])
def test_changed_data_is_refused(loader, what):
    lengths = lengths_of("skewed")
    state = loader(make_examples(lengths), batch_size=16, packing=True).get_state()
    changed = make_examples(lengths)
    if what == "swapped":
        changed[0], changed[1] = changed[1], changed[0]
    elif what == "fewer":
        changed.pop()
    elif what == "labels":
        changed[5] = make_examples(lengths, label=lambda i: np.asarray(0, np.int32))[5]
    else:
        changed[5].arrays[what][-1] ^= 1
    with pytest.raises(UserError, match="the tokenized training examples differ .*train.restart=true"):
        loader(changed, batch_size=16, packing=True).set_state(state)


@pytest.mark.parametrize("mode", MODES)
def test_processes_share_the_rows_of_one_batch(loader, mode):
    examples = make_examples(lengths_of("skewed"))
    whole = loader(examples, share=Share((0, 1), 2), **MODES[mode])
    parts = [loader(examples, share=Share((p,), 2), **MODES[mode]) for p in range(2)]
    assert {part.fingerprint for part in parts} == {whole.fingerprint}
    for _ in range(whole.steps_per_epoch + 1):
        first, second = (next(part) for part in parts)
        assert len(first["tokens"]) == len(second["tokens"])
        assert_equal([{key: np.concatenate([first[key], second[key]]) for key in first}], [next(whole)])


def test_rows_that_do_not_divide_among_processes_are_refused(loader):
    with pytest.raises(ValueError, match="cannot hold an even share of 2 rows"):
        loader(make_examples([5]), batch_size=1, packing=True, share=Share((2,), 2))
    with pytest.raises(ValueError, match="either batch_size or"):
        loader(make_examples([5]), packing=True)
    with pytest.raises(UserError, match="no examples"):
        loader([], batch_size=1, packing=True)


def test_a_closed_loader_is_not_read(loader):
    train = loader(make_examples([5, 6]), batch_size=1, packing=True)
    next(train)
    train.close()
    train.close()
    with pytest.raises(ValueError, match="closed"):
        next(train)


def test_sst2_packs_with_little_padding(loader, shared_data):
    """Word counts plus three (two special tokens, one split word) stand for token counts."""
    lines = (shared_data / "classification/sst2/train.tsv").read_text(encoding="utf-8").splitlines()
    examples = make_examples([len(line.split("\t")[0].split()) + 3 for line in lines])
    settings = {"batch_size": 32, "max_length": 128, "row_length": None}
    packed = loader(examples, packing=True, **settings)
    assert packed.padding_share < 0.12 and len(packed.shapes.row_counts) <= 4
    assert loader(examples, packing=False, **settings).padding_share > 0.3
    balanced = loader(examples, packing=True, order="balanced", **settings)
    assert balanced.padding_share < 0.04
    shapes = Counter(batch["tokens"].shape for batch in take(balanced, 2 * balanced.steps_per_epoch))
    assert len(shapes) <= 3 and max(shapes.values()) == 2 * (balanced.steps_per_epoch - 1)  # all but the epochs' last


def test_balanced_batches_hold_like_numbers_of_tokens():
    """Lengths from 3 to 60: at random, a batch of 16 has some 500 tokens, give or take 65."""
    lengths = np.random.default_rng(0).integers(3, 61, 16 * 50 + 5)
    longest = []
    for epoch in range(8):
        order = balanced_order(lengths, 16, 7, epoch)
        assert sorted(order.tolist()) == list(range(len(lengths)))
        batches = lengths[order[:800].reshape(50, 16)]
        assert np.ptp(batches.sum(axis=1)) <= 6
        assert set(order[800:]) == set(epoch_order(len(lengths), 7, epoch)[800:])
        longest.append(int(np.flatnonzero((batches == lengths.max()).any(axis=1))[0]))
    assert len(set(longest)) > 4  # the batch of the longest example may come at any time


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packing", [True, False])
def test_evaluation_sees_every_example_once(kind, packing):
    examples = make_examples(lengths_of(kind))

    def batches_of(shards):
        layout = BatchLayout(eval_rows=5, row_length=ROW, packing=packing, share=Share(shards, 2))
        return list(dataset_of(examples).batches(layout))

    batches = batches_of((0, 1))
    assert_same([found for batch in batches for found in unpack(batch)], examples)
    shapes = Counter((*batch["tokens"].shape, batch["weights"].shape[1]) for batch in batches)
    assert {rows for rows, _, _ in shapes} == {6}  # five, rounded up to a multiple of two
    assert len(shapes) == 1 if packing else len(shapes) <= 4
    assert_equal(batches, batches_of((0, 1)))
    parts = [batches_of((p,)) for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*parts, strict=True)]
    assert_equal(joined, batches)


def test_packed_evaluation_has_little_padding():
    lengths = lengths_of("skewed")
    batches = list(dataset_of(make_examples(lengths)).batches(BatchLayout(eval_rows=1, row_length=64)))
    assert len(batches) <= 1.03 * lengths.sum() / 64 + 1


def test_evaluation_of_nothing_or_of_too_long_an_example():
    assert list(dataset_of([]).batches(BatchLayout())) == []
    for packing in (True, False):
        with pytest.raises(UserError, match="data.row_length: expected at least 17"):
            dataset_of(make_examples([3, 17])).batches(BatchLayout(row_length=16, packing=packing))


@pytest.fixture
def grouped():
    """Examples of which 3 g, 3 g + 1 and 3 g + 2 belong to group g."""
    examples = make_examples(lengths_of("short"))
    return [replace(example, group=i // 3) for i, example in enumerate(examples)]


def test_a_group_is_drawn_together_and_counts_as_one(loader, grouped):
    train = loader(grouped, batch_size=4)
    assert train.steps_per_epoch == -(-30 // 4)
    batches = take(train, train.steps_per_epoch)
    seen = []
    for batch in batches:
        held, groups = (batch[name][batch["examples"] >= 0] for name in ("examples", "groups"))
        assert (held // 3 == groups).all() and set(Counter(groups.tolist()).values()) == {3}
        assert (batch["groups"][batch["examples"] < 0] == -1).all()
        seen += held.tolist()
    assert [len(set(batch["groups"][batch["groups"] >= 0])) for batch in batches] == [4] * 7 + [2]
    assert sorted(seen) == list(range(90))


def test_groups_are_not_counted_in_tokens(loader, grouped):
    with pytest.raises(UserError, match=r"train.batch_tokens: examples of this task .* expected train.batch_size"):
        loader(grouped, batch_size=None, batch_tokens=512)


def test_groups_of_one_change_nothing(loader):
    lengths = lengths_of("skewed")
    alone = loader(make_examples(lengths), batch_size=16)
    numbered = loader([replace(e, group=i) for i, e in enumerate(make_examples(lengths))], batch_size=16)
    for _ in range(20):
        batch = next(numbered)
        np.testing.assert_array_equal(batch.pop("groups"), batch["examples"])
        assert_equal([batch], [next(alone)])


def test_evaluation_keeps_groups_in_one_batch(grouped):
    batches = list(dataset_of(grouped).batches(BatchLayout(eval_rows=2, row_length=ROW)))
    assert len(batches) > 2 and len({batch["tokens"].shape for batch in batches}) == 1
    groups = [batch["groups"][batch["groups"] >= 0].tolist() for batch in batches]
    assert all(set(Counter(held).values()) == {3} for held in groups)
    assert sorted(group for held in groups for group in held) == sorted(list(range(30)) * 3)


def test_two_streams_are_packed_side_by_side():
    """A translation's source and target: each in its own row, under the same segment."""
    rng = np.random.default_rng(0)
    examples = [
        Example({"tokens": rng.integers(1, 9, n), "decoder_tokens": rng.integers(1, 9, m), "labels": np.arange(m)}, i)
        for i, (n, m) in enumerate([(3, 5), (4, 2), (6, 1)])
    ]
    batch = build_batch(
        examples, [[0, 2], [1]], [Field("labels", "token", fill=-1, stream="decoder_")],
        num_rows=2, row_lengths={"": 10, "decoder_": 7}, slots=2, pad_id=0,
    )  # fmt: skip
    assert batch["segment_ids"].tolist() == [[1] * 3 + [2] * 6 + [0], [1] * 4 + [0] * 6]
    assert batch["decoder_segment_ids"].tolist() == [[1] * 5 + [2, 0], [1] * 2 + [0] * 5]
    assert batch["labels"].tolist() == [[0, 1, 2, 3, 4, 0, -1], [0, 1] + [-1] * 5]
    for row, slot, i in ((0, 1, 0), (0, 2, 2), (1, 1, 1)):
        for stream in ("", "decoder_"):
            inside = batch[f"{stream}segment_ids"][row] == slot
            np.testing.assert_array_equal(batch[f"{stream}tokens"][row, inside], examples[i].arrays[f"{stream}tokens"])
