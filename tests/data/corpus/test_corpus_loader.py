"""The corpus loader's contract: every row once an epoch, exact mixtures, exact resume, shares of one global batch."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from helpers.corpora import LENGTHS, make_corpus
from helpers.corpus_batches import ROW_LENGTH, ROWS, assert_equal, build, rows_of, take

from jaxlm.data.corpus.loader import CorpusLoader, corpus_eval_batches
from jaxlm.data.corpus.mixture import Mixture
from jaxlm.data.corpus.row_plan import plan_corpus
from jaxlm.errors import UserError
from jaxlm.parallel.share import Share


def plan(lengths=LENGTHS["mixed"], *, across=False, seed=3, base=0, row_length=ROW_LENGTH):
    corpus = make_corpus(lengths, base=base)
    return plan_corpus(corpus, row_length=row_length, lookahead=1, concat_documents=across, seed=seed)


@pytest.fixture
def loader():
    """Makes loaders and closes them after the test."""
    made = []

    def make(*parts, weights=None, **settings):
        weights = weights or [1.0] * len(parts)
        defaults = {"build": build, "rows": ROWS, "seed": 3}
        made.append(CorpusLoader(list(zip(parts, weights, strict=True)), **(defaults | settings)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def tokens_of(rows):
    return Counter(token - 1 for row in rows for token in row if token)


def inputs_of(corpus):
    """Every token but the last of each document is an input."""
    return Counter(set(range(corpus.num_tokens)) - set((corpus.offsets[1:] - 1).tolist()))


@pytest.mark.parametrize("kind", LENGTHS)
def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(loader, kind):
    part = plan(LENGTHS[kind])
    train = loader(part)
    epochs = rows_of(take(train, -(-3 * part.num_rows // ROWS)))
    epochs = [epochs[k * part.num_rows : (k + 1) * part.num_rows] for k in range(3)]
    for epoch in epochs:
        assert tokens_of(epoch) == inputs_of(part.corpus)
    if part.num_rows > 10:
        assert len({str(epoch) for epoch in epochs}) == 3
    assert train.steps_per_epoch == -(-part.num_rows // ROWS)


def test_across_documents_every_epoch_reads_its_own_cuts(loader):
    part = plan(across=True)
    rows = rows_of(take(loader(part), 3 * part.num_rows))
    for epoch in range(3):
        found = sorted(rows[epoch * part.num_rows : (epoch + 1) * part.num_rows])
        assert found == [(part.segments(row, epoch)[0].tokens[:-1] + 1).tolist() for row in range(part.num_rows)]


@pytest.mark.parametrize("across", [False, True])
def test_resume_at_any_step_is_the_undisturbed_run(loader, across):
    """Two epochs of a mixture, masks included."""
    parts = [plan(across=across), plan(LENGTHS["all short"], across=across, base=1000)]
    settings = {"weights": [1.0, 3.0]}
    train = loader(*parts, **settings)
    count = 2 * train.steps_per_epoch + 1
    states, batches = [json.dumps(train.get_state())], []
    for batch in itertools.islice(train, count):
        batches.append(batch)
        states.append(json.dumps(train.get_state()))
    for k in range(count):
        resumed = loader(*parts, **settings)
        next(resumed)  # what was prefetched before is not to leak in
        resumed.set_state(json.loads(states[k]))
        assert json.dumps(resumed.get_state()) == states[k]
        assert_equal(take(resumed, 2), batches[k : k + 2] if k + 2 <= count else [*batches[k:], next(train)])
        resumed.close()


def test_masks_are_fresh_every_epoch_and_the_same_for_any_number_of_processes(loader):
    part = plan()
    one = take(loader(part), 3 * part.num_rows)
    masks = rows_of(one, "masks")
    assert len({str(mask) for mask in masks}) == len(masks)
    halves = [take(loader(part, share=Share((p,), 2)), len(one)) for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
    assert_equal(joined, one)
    assert loader(part, share=Share((1,), 2)).fingerprint == loader(part).fingerprint
    assert_equal(take(loader(part, rows=ROWS, seed=3), 3), one[:3])
    assert rows_of(take(loader(part, seed=4), 3)) != rows_of(one[:3])


@pytest.mark.parametrize("weights", [[1.0, 3.0], [0.6, 0.3, 0.1], [1.0, 1.0, 1.0], [999.0, 1.0]])
def test_a_mixture_keeps_its_proportions_in_every_period(weights):
    mixture = Mixture(weights, seed=1)
    period = int(mixture.counts.sum())
    exact = np.asarray(weights) / sum(weights) * period
    assert np.abs(mixture.counts - exact).max() < 1
    assert period == 1000 or exact.min() >= 20
    seen = [[] for _ in weights]
    orders = []
    for k in range(3):
        drawn = [mixture.locate(draw) for draw in range(k * period, (k + 1) * period)]
        for source, rank in drawn:
            seen[source].append(rank)
        orders.append([source for source, _ in drawn])
        assert [orders[-1].count(source) for source in range(len(weights))] == mixture.counts.tolist()
    assert all(ranks == list(range(len(ranks))) for ranks in seen)  # no row of a source is missed or drawn twice
    assert orders[0] != orders[1]
    assert [mixture.locate(draw) for draw in (2500, 7, 2500)] == [
        Mixture(weights, seed=1).locate(draw) for draw in (2500, 7, 2500)
    ]


def test_a_mixture_of_a_sources_epochs_is_each_in_its_own_order(loader):
    small, large = plan([17] * 5), plan(LENGTHS["mixed"], base=10_000)
    train = loader(small, large, weights=[1.0, 1.0])
    rows = rows_of(take(train, 1000 // ROWS))
    first = [row for row in rows if 0 < max(row) <= 10_000]
    assert len(first) == 500
    for k in range(0, 500, 5):
        assert tokens_of(first[k : k + 5]) == inputs_of(small.corpus)
    assert train.steps_per_epoch == -(-(small.num_rows + large.num_rows) // ROWS)


def test_sources_of_one_size_have_orders_of_their_own(loader):
    rows = rows_of(take(loader(plan(), plan(base=10_000)), 1000 // ROWS))
    first, second = ([row for row in rows if (max(row) > 10_000) == large] for large in (False, True))
    shifted = [[token - 10_000 if token else 0 for token in row] for row in second]
    assert first != shifted


def test_a_weight_too_small_to_keep_is_refused(loader):
    with pytest.raises(UserError, match=r"source 2 has a weight of 1e-06, .* Raise its weight or leave it out"):
        loader(plan(), plan(), weights=[1.0, 1e-6])


def test_shape_and_padding_are_as_announced(loader):
    parts = [plan(), plan(LENGTHS["all short"], base=5000)]
    train = loader(*parts, weights=[1.0, 1.0])
    batches = take(train, 10 * 1000 // ROWS)
    padding = np.mean([batch["segment_ids"] == 0 for batch in batches])
    assert train.padding_share == pytest.approx(padding, abs=0.01)
    assert {batch["tokens"].shape for batch in batches} == {(ROWS, train.shapes.row_length)}
    assert max(batch["segment_ids"].max() for batch in batches) == train.shapes.slots
    assert train.shapes.row_counts == (ROWS,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3 and is now 4"),
        ({"rows": 2}, "the rows of a batch was 4 and is now 2"),
        ({"settings": {"task.mask_rate": 0.3}}, "task.mask_rate was 0.15 and is now 0.3"),
        ({"weights": [2.0, 1.0]}, r"the weights of data.train.mixture was \[1.0, 1.0\] and is now \[2.0, 1.0\]"),
    ],
)
def test_a_changed_setting_is_refused_by_name(loader, change, message):
    parts, settings = (plan(), plan(base=9)), {"settings": {"task.mask_rate": 0.15}}
    state = json.loads(json.dumps(loader(*parts, **settings).get_state()))
    with pytest.raises(UserError, match=f"{message}.*train.restart=true") as error:
        loader(*parts, **{**settings, **change}).set_state(state)
    assert "corpus differs" not in str(error.value)


def test_other_rows_of_the_same_corpus_are_refused_by_name(loader):
    state = loader(plan()).get_state()
    with pytest.raises(UserError, match="data.concat_documents was False and is now True"):
        loader(plan(across=True)).set_state(state)
    with pytest.raises(UserError, match="the tokenized training corpus differs"):
        loader(plan(base=1)).set_state(state)
    with pytest.raises(UserError, match="the row length was 16 and is now 32"):
        loader(plan(row_length=32)).set_state(state)


def test_rows_that_do_not_divide_and_unequal_rooms_are_refused(loader):
    with pytest.raises(ValueError, match="cannot hold an even share of 4 rows"):
        loader(plan(), share=Share((0,), 3))
    with pytest.raises(ValueError, match=r"one row length; found \[16, 32\]"):
        loader(plan(), plan(row_length=32))


def test_a_closed_loader_is_not_read(loader):
    train = loader(plan())
    next(train)
    train.close()
    train.close()
    with pytest.raises(ValueError, match="closed"):
        next(train)


@pytest.mark.parametrize("across", [False, True])
def test_evaluation_sees_every_row_once_with_the_same_masks_every_time(across):
    plans = [plan(across=across, seed=None), plan(LENGTHS["all short"], across=across, seed=None, base=1000)]
    batches = list(corpus_eval_batches(plans, build, 5))
    assert {batch["tokens"].shape for batch in batches} == {(5, ROW_LENGTH)}
    rows = rows_of(batches)
    count = sum(part.num_rows for part in plans)
    segments = [part.segments(row) for part in plans for row in range(part.num_rows)]
    assert rows[:count] == [build(each, np.random.default_rng(0))["tokens"].tolist() for each in segments]
    assert len(batches) == -(-count // 5)
    assert not np.any(rows[count:])  # what is left over is empty
    assert_equal(list(corpus_eval_batches(plans, build, 5)), batches)
    pairs = [list(corpus_eval_batches(plans, build, 6, share=Share((p,), 2))) for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*pairs, strict=True)]
    assert rows_of(joined)[:count] == rows[:count]
    assert rows_of(joined, "masks")[:count] == rows_of(batches, "masks")[:count]
