"""`data.sampling`: rows of each class in an epoch, in every kind of batch, exact on resume and for any processes."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from helpers.packed_examples import ROW, dataset_of, fields_of, lengths_of, make_examples

from jaxlm.data.config import TemperatureConfig
from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.loader import TrainLoader
from jaxlm.data.examples.sampling import make_draw, sampled_counts
from jaxlm.errors import UserError
from jaxlm.parallel.share import Share

COUNTS = [50, 4, 17]
CLASSES = np.random.default_rng(1).permutation(np.repeat([0, 1, 2], COUNTS))
RULES = {
    "balanced": [50, 50, 50],
    "sqrt": [50, round(50 * (4 / 50) ** (1 / 2)), round(50 * (17 / 50) ** (1 / 2))],
    "under": [4, 4, 4],
    TemperatureConfig(temperature=5): [50, round(50 * (4 / 50) ** (1 / 5)), round(50 * (17 / 50) ** (1 / 5))],
    TemperatureConfig(temperature=1): COUNTS,
}
MODES = {
    "packed": {"batch_size": 16, "packing": True},
    "dealt": {"batch_size": 16, "packing": True, "order": "balanced"},
    "padded": {"batch_size": 16, "packing": False},
    "tokens": {"batch_size": None, "batch_tokens": 4 * ROW, "packing": True},
}


@pytest.fixture
def loader():
    """Makes loaders and closes them after the test."""
    made = []

    def make(examples, classes=CLASSES, **settings):
        layout = BatchLayout(**({"max_length": ROW, "seed": 3} | settings))
        made.append(TrainLoader(examples, fields_of(examples), layout, classes))
        return made[-1]

    yield make
    for each in made:
        each.close()


def indices(batch):
    return batch["examples"][batch["examples"] >= 0].tolist()


def epochs(train, total, count):
    """The examples of each epoch, of which each has `total`."""
    found = [[]]
    while len(found) <= count:
        found[-1] += indices(next(train))
        assert len(found[-1]) <= total  # no batch straddles two
        if len(found[-1]) == total:
            found.append([])
    return found[:-1]


@pytest.mark.parametrize(("rule", "expected"), RULES.items())
def test_an_epoch_holds_as_many_rows_of_a_class_as_the_formula_says(rule, expected):
    assert sampled_counts([*COUNTS, 0], rule).tolist() == [*expected, 0]
    draw = make_draw(CLASSES, rule, 7)
    drawn = [draw(epoch) for epoch in range(6)]
    for epoch in drawn:
        assert np.bincount(CLASSES[epoch]).tolist() == expected
        times = np.bincount(epoch, minlength=len(CLASSES))
        for c in range(3):  # each row as often as another, give or take one
            assert np.ptp(times[CLASSES == c]) <= 1
    again = make_draw(CLASSES, rule, 7)
    assert all(np.array_equal(again(epoch), drawn[epoch]) for epoch in (5, 2))
    assert not np.array_equal(make_draw(CLASSES, rule, 8)(0), drawn[0]) and not np.array_equal(drawn[0], drawn[1])


def test_rows_that_are_left_out_come_in_other_epochs():
    draw = make_draw(CLASSES, "under", 0)
    assert set(np.concatenate([draw(epoch) for epoch in range(150)])) == set(range(len(CLASSES)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rule", ["balanced", "under"])
def test_every_kind_of_batch_holds_what_is_drawn(loader, mode, rule):
    examples = make_examples(np.resize(lengths_of("skewed"), len(CLASSES)))
    train = loader(examples, sampling=rule, **MODES[mode])
    total = sum(RULES[rule])
    for epoch in epochs(train, total, 3):
        assert Counter(CLASSES[epoch].tolist()) == dict(enumerate(RULES[rule]))
    if mode != "tokens":
        assert train.steps_per_epoch == -(-total // 16)
    cells = tokens = 0
    for step in range(train.steps_per_epoch):
        batch = train._build(step)
        cells, tokens = cells + batch["tokens"].size, tokens + int((batch["segment_ids"] > 0).sum())
    assert train.padding_share == pytest.approx(1 - tokens / cells)


@pytest.mark.parametrize("mode", MODES)
def test_resume_and_processes(loader, mode):
    """From any step on bit for bit; two processes' rows together are one process's."""
    examples = make_examples(np.resize(lengths_of("skewed"), len(CLASSES)))
    train = loader(examples, sampling="sqrt", **MODES[mode], share=Share((0, 1), 2))
    parts = [loader(examples, sampling="sqrt", **MODES[mode], share=Share((p,), 2)) for p in range(2)]
    states, batches = [], []
    for _ in range(2 * train.steps_per_epoch + 1):
        states.append(json.dumps(train.get_state()))
        batches.append(next(train))
        halves = [next(part) for part in parts]
        for key, value in batches[-1].items():
            assert np.array_equal(np.concatenate([half[key] for half in halves]), value), key
    for k in (1, train.steps_per_epoch, len(batches) - 1):
        resumed = loader(examples, sampling="sqrt", **MODES[mode], share=Share((0, 1), 2))
        resumed.set_state(json.loads(states[k]))
        for expected, found in zip(batches[k:], resumed, strict=False):
            assert all(np.array_equal(found[key], value) for key, value in expected.items())


def test_an_example_that_the_first_epochs_do_not_draw_has_room(loader):
    """Padded and under-sampled: one long row among hundreds is drawn late."""
    classes = np.asarray([0] * 2 + [1] * 3000)
    lengths = [5] * 2 + [5] * 2999 + [ROW]
    train = loader(make_examples(lengths), classes, sampling="under", batch_size=4, packing=False)
    draw = make_draw(classes, "under", 3)
    late = next(epoch for epoch in itertools.count() if 3001 in draw(epoch))
    assert late > 16 and train.steps_per_epoch == 1
    batch = train._build(late)
    assert 3001 in indices(batch) and batch["tokens"].shape[1] >= ROW


@pytest.mark.parametrize("mode", MODES)
def test_windows_of_a_text_are_drawn_together_and_count_as_one(loader, mode):
    examples = [replace(e, row=i // 2) for i, e in enumerate(make_examples([9] * 2 * len(CLASSES)))]
    train = loader(examples, sampling="balanced", **MODES[mode])
    found = [indices(next(train)) for _ in range(train.steps_per_epoch)]
    rows = [i // 2 for i in itertools.chain(*found)]
    assert np.bincount(CLASSES[rows]).tolist() == [100, 100, 100]
    if mode != "tokens":
        assert {len(batch) for batch in found[:-1]} == {32}
        assert all(Counter(batch)[i] == Counter(batch)[i ^ 1] for batch in found for i in batch)
    assert "groups" not in next(train)


def test_a_changed_sampling_is_refused_and_none_leaves_no_trace(loader):
    examples = make_examples([5] * len(CLASSES))
    state = loader(examples, sampling="sqrt").get_state()
    with pytest.raises(UserError, match="data.sampling was sqrt and is now {'temperature': 3.0}"):
        loader(examples, sampling=TemperatureConfig(temperature=3)).set_state(state)
    natural = loader(examples, classes=None)
    assert "data.sampling" not in natural.get_state()["identity"]["settings"]


def test_rows_without_a_class_are_refused():
    with pytest.raises(UserError, match="data.sampling: rows of this task have no one class"):
        dataset_of(make_examples([5])).loader(BatchLayout(sampling="sqrt"))
