"""Streaming: the rows of a planned corpus without a cache, exact resume, shares of one global batch."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer
from helpers.corpus_batches import ROOM, ROWS, assert_equal, build, rows_of, take

from jaxlm.data.config import DataConfig
from jaxlm.data.corpus import documents, stream, text_batches
from jaxlm.data.corpus.cache import open_corpora
from jaxlm.data.corpus.row_plan import plan_corpus
from jaxlm.data.corpus.stream_loader import StreamLoader, open_streams
from jaxlm.errors import UserError
from jaxlm.parallel.share import Share

TEXTS = [
    "a",
    "",
    "two words",
    "a document that is longer than a row of sixteen",
    "x" * 15,
    "y" * 16,
    "é" * 20,
    " \n",
] * 3
TEXTS = [f"{i} {text}" if text.strip() else text for i, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Windows of few rows, batches of few texts, so that a small source has many."""
    monkeypatch.setattr(stream, "_WINDOW_ROWS", 5)
    monkeypatch.setattr(text_batches, "_BATCH_TEXTS", 3)
    monkeypatch.setattr(documents, "_PIECE", 8)


@pytest.fixture
def write(tmp_path):
    def to_file(name, texts):
        lines = texts if name.endswith(".txt") else "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (tmp_path / name).write_text(lines, encoding="utf-8")
        return {"path": str(tmp_path / name)}

    return to_file


def streams(train, across=False, seed=3, overlap=1, overhead=0, **data: Any):
    config = DataConfig.model_validate({"train": train, "max_length": ROOM, "across_documents": across, **data})
    return open_streams(
        config, text_column="text", tokenizer=byte_tokenizer(), wrap="documents", overlap=overlap, overhead=overhead,
        seed=seed,
    )  # fmt: skip


@pytest.fixture
def loader():
    """Makes loaders and closes them after the test."""
    made = []

    def make(train, *, across=False, **settings):
        settings = {"build": build, "rows": ROWS, "seed": 3, "steps": 10} | settings
        made.append(StreamLoader(streams(train, across, settings["seed"]), **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def planned(tmp_path, train, across=False, overlap=1, overhead=0):
    """The segments that the planned corpus has in evaluation."""
    config = DataConfig.model_validate({"train": train, "max_length": ROOM})
    ((corpus, _),) = open_corpora(
        config, ("train",), text_column="text", tokenizer=byte_tokenizer(), cache=tmp_path / "cache", wrap="documents"
    )["train"]
    plan = plan_corpus(corpus, room=ROOM, overlap=overlap, across_documents=across, overhead=overhead)
    return corpus, [segment.tokens.tolist() for row in range(plan.num_rows) for segment in plan.segments(row)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize(("overlap", "overhead"), [(1, 0), (0, 2)])
def test_every_pass_holds_the_segments_of_the_planned_corpus(write, tmp_path, name, overlap, overhead):
    train = write(name, "\n".join(TEXTS) if name == "a.txt" else TEXTS)
    _, expected = planned(tmp_path, train, overlap=overlap, overhead=overhead)
    ((drawn, _),) = streams(train, overlap=overlap, overhead=overhead)
    orders = []
    for _ in range(3):
        found: list[list[int]] = []
        while len(found) < len(expected):
            row = [segment.tokens.tolist() for segment in next(drawn)]
            assert sum(len(tokens) - overlap + overhead for tokens in row) <= ROOM
            assert len(row) <= drawn.max_segments
            found += row
        assert Counter(map(tuple, found)) == Counter(map(tuple, expected))
        orders.append(found)
    assert orders[0] != orders[1]


def test_across_documents_the_text_goes_on_from_pass_to_pass(write, tmp_path, monkeypatch):
    train = write("a.jsonl", TEXTS)
    corpus, _ = planned(tmp_path, train)
    endless = np.tile(corpus.tokens, 4).astype(np.int32)
    expected = [endless[k * ROOM : (k + 1) * ROOM + 1].tolist() for k in range(3 * corpus.num_tokens // ROOM)]
    ((drawn, _),) = streams(train, across=True)
    found = [segment.tokens.tolist() for row in itertools.islice(drawn, len(expected) + 40) for segment in row]
    assert not Counter(map(tuple, expected)) - Counter(map(tuple, found))  # what is beyond belongs to later passes
    assert found[: len(expected)] != expected  # but not in that order
    assert {len(tokens) for tokens in found} == {ROOM + 1}


@pytest.mark.parametrize("across", [False, True])
def test_resume_at_any_step_is_the_undisturbed_run(write, loader, across):
    """A mixture, masks included, by loaders that have read something else before."""
    train = {"mixture": [write("a.jsonl", TEXTS), write("b.txt", "\n".join(TEXTS)) | {"weight": 2.0}]}
    undisturbed = loader(train, across=across)
    count = 24
    states, batches = [json.dumps(undisturbed.get_state())], []
    for batch in itertools.islice(undisturbed, count):
        batches.append(batch)
        states.append(json.dumps(undisturbed.get_state()))
    batches += take(undisturbed, 8)
    for k in range(count + 1):
        resumed = loader(train, across=across)
        take(resumed, k % 3)
        resumed.set_state(json.loads(states[k]))
        assert json.dumps(resumed.get_state()) == states[k]
        assert_equal(take(resumed, 8), batches[k : k + 8])
        resumed.close()
    assert len({str(mask) for mask in rows_of(batches, "masks")}) == ROWS * len(batches)


def test_processes_share_the_rows_of_one_batch(write, loader):
    train = write("a.jsonl", TEXTS)
    one = take(loader(train), 20)
    halves = [take(loader(train, share=Share((p,), 2)), 20) for p in range(2)]
    joined = [{key: np.concatenate([a[key], b[key]]) for key in a} for a, b in zip(*halves, strict=True)]
    assert_equal(joined, one)
    assert rows_of(take(loader(train, seed=4), 20)) != rows_of(one)
    assert {batch["tokens"].shape for batch in one} == {(ROWS, ROOM)}


def test_what_it_knows_of_itself(write, loader):
    train = loader(write("a.jsonl", TEXTS))
    assert train.steps_per_epoch is None
    assert (train.shapes.row_counts, train.shapes.row_length, train.shapes.slots) == ((ROWS,), ROOM, ROOM)
    assert 0 < train.padding_share < 0.5
    assert loader(write("a.jsonl", TEXTS), across=True).padding_share == 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"clean": {"deduplicate": True}}, r"data\.clean\.deduplicate: needs data\.tokenize=once"),
        ({"clean": {"leaks": "drop"}}, r"data\.clean\.leaks=drop: needs data\.tokenize=once"),
        ({"train": None}, r"data\.train: expected a source of training text"),
        ({"train": {"rows": [{"text": " "}, {"text": ""}]}}, r"data\.train \(2 rows\): no text to learn from"),
        ({"max_length": 1, "train": {"rows": [{"text": "abc"}]}}, None),
    ],
)
def test_what_cannot_be_streamed_is_refused(write, data, message):
    if message is None:
        ((drawn, _),) = streams(**({"train": write("a.jsonl", TEXTS)} | data))
        assert [len(segment.tokens) for segment in next(drawn)] == [2]
        return
    with pytest.raises(UserError, match=message):
        streams(**({"train": write("a.jsonl", TEXTS)} | data))


def test_steps_are_needed_and_changes_are_refused_by_name(write, loader):
    train = write("a.jsonl", TEXTS)
    with pytest.raises(UserError, match=r"train\.steps: expected a number with data\.tokenize=stream"):
        loader(train, steps=None)
    state = loader(train).get_state()
    with pytest.raises(UserError, match="seed was 3 and is now 4"):
        loader(train, seed=4).set_state(state)
    with pytest.raises(UserError, match="the tokenised training corpus differs"):
        loader(write("a.jsonl", [*TEXTS, "more"])).set_state(state)


def test_bad_rows_stop_the_run_or_are_warned_of(tmp_path, loader, caplog):
    (tmp_path / "a.jsonl").write_text('{"text": "abc"}\n' * 40 + "oops\n")
    train = {"path": str(tmp_path / "a.jsonl")}
    with pytest.raises(UserError, match="row 41: not valid JSON"):
        take(loader(train), 50)
    ((drawn, _),) = streams(train, on_bad_row="skip")
    take(drawn, 100)
    assert caplog.text.count("bad rows are skipped, the first:") == 1
