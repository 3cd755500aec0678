"""Rows of a corpus: what is in them, what never is, and that planning is done once and in bounded memory."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from helpers.corpora import LENGTHS, document_of, make_corpus
from helpers.paths import TESTS

from jaxlm.data.corpus import row_plan, stored
from jaxlm.data.corpus.row_plan import plan_corpus
from jaxlm.errors import RunFailure, UserError

ROW_LENGTH = 16


def all_segments(plan, epoch=0):
    return [segment for row in range(plan.num_rows) for segment in plan.segments(row, epoch)]


def predicted(plan, epoch=0):
    """How often each token of the corpus is a target (lookahead 1) or an input (0)."""
    return Counter(
        int(token) for segment in all_segments(plan, epoch) for token in segment.tokens[plan.lookahead :].tolist()
    )


def check_rows(plan):
    """What holds for every plan: rows fit, counts are true, a segment is a stretch of the corpus."""
    most = columns = 0
    for row in range(plan.num_rows):
        segments = plan.segments(row)
        sizes = [len(segment.tokens) - plan.lookahead for segment in segments]
        assert min(sizes) >= 1
        assert sum(sizes) <= plan.row_length
        most = max(most, len(segments))
        columns += sum(sizes)
        for segment in segments:
            assert segment.tokens.dtype == np.int32
            start = int(segment.tokens[0])  # a token of these corpora is its own place
            expected = plan.corpus.tokens[start : start + len(segment.tokens)]
            assert segment.tokens.tolist() == expected.tolist()
    assert plan.max_segments == most
    return columns


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("lookahead", [0, 1])
@pytest.mark.parametrize("on_disk", [False, True])
def test_packed_rows_hold_every_token_once_and_never_two_documents_in_a_segment(tmp_path, kind, lookahead, on_disk):
    corpus = make_corpus(LENGTHS[kind], directory=tmp_path / "corpus" if on_disk else None)
    plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=lookahead, concat_documents=False, seed=3)
    firsts = set(corpus.offsets[:-1].tolist()) if lookahead else set()
    assert predicted(plan) == Counter(i for i in range(corpus.num_tokens) if i not in firsts)
    assert check_rows(plan) == plan.num_columns
    for segment in all_segments(plan):
        documents = {document_of(corpus, int(token)) for token in segment.tokens}
        assert len(documents) == 1
        assert len(segment.tokens) - lookahead <= ROW_LENGTH


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("lookahead", [0, 1])
def test_evaluation_across_documents_holds_every_token_once_in_order(kind, lookahead):
    corpus = make_corpus(LENGTHS[kind])
    plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=lookahead, concat_documents=True)
    assert predicted(plan) == Counter(range(lookahead, corpus.num_tokens))
    assert check_rows(plan) == plan.num_columns
    assert plan.max_segments == 1
    sizes = [len(segment.tokens) - lookahead for segment in all_segments(plan)]
    assert all(size == ROW_LENGTH for size in sizes[:-1])
    assert [int(segment.tokens[0]) for segment in all_segments(plan)] == [ROW_LENGTH * i for i in range(plan.num_rows)]


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("lookahead", [0, 1])
def test_training_across_documents_cuts_elsewhere_every_epoch(kind, lookahead):
    corpus = make_corpus(LENGTHS[kind])
    plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=lookahead, concat_documents=True, seed=5)
    starts, inputs = set(), min(corpus.num_tokens - lookahead, plan.num_rows * ROW_LENGTH)
    for epoch in range(40):
        seen = predicted(plan, epoch)
        assert set(seen.values()) == {1}
        ordered = sorted(seen)
        assert ordered == list(range(ordered[0], ordered[0] + len(ordered)))
        assert len(ordered) == inputs  # the same number of rows, all full, in every epoch
        assert corpus.num_tokens - lookahead - len(ordered) < 2 * ROW_LENGTH
        starts.add(ordered[0] - lookahead)
    slack = corpus.num_tokens - lookahead - inputs
    assert starts <= set(range(ROW_LENGTH))
    assert len(starts) > 10 if slack >= ROW_LENGTH - 1 else starts <= set(range(slack + 1))
    again = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=lookahead, concat_documents=True, seed=5)
    other = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=lookahead, concat_documents=True, seed=6)
    cuts = [[int(plan.segments(0, epoch)[0].tokens[0]) for epoch in range(20)] for plan in (plan, again, other)]
    assert cuts[0] == cuts[1]
    assert cuts[0] != cuts[2] or slack == 0
    assert plan.settings == again.settings != other.settings


def test_a_corpus_shorter_than_a_row_is_one_row():
    corpus = make_corpus([5, 4])
    for seed in (None, 1):
        plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=True, seed=seed)
        assert plan.num_rows == 1
        assert [segment.tokens.tolist() for segment in plan.segments(0, 7)] == [list(range(9))]


def test_special_tokens_take_up_columns():
    corpus = make_corpus(LENGTHS["mixed"])
    plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=0, concat_documents=False, overhead=2)
    assert predicted(plan) == Counter(range(corpus.num_tokens))
    used = [sum(len(segment.tokens) + 2 for segment in plan.segments(row)) for row in range(plan.num_rows)]
    assert max(used) <= ROW_LENGTH
    assert sum(used) == plan.num_columns
    across = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=0, concat_documents=True, overhead=2)
    assert {len(segment.tokens) for segment in all_segments(across)[:-1]} == {ROW_LENGTH - 2}
    with pytest.raises(UserError, match=r"data\.max_length: 2 leaves no room for text beside 2 special tokens"):
        plan_corpus(corpus, row_length=2, lookahead=0, concat_documents=False, overhead=2)


def test_a_cost_of_ones_own():
    """As for span corruption, where a segment of n tokens becomes fewer columns than n."""
    corpus = make_corpus(LENGTHS["mixed"])

    def cost(lengths):
        return -(-lengths * 3 // 4) + 1

    plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=0, concat_documents=False, cost=cost)
    used = [
        sum(int(cost(np.asarray(len(segment.tokens)))) for segment in plan.segments(row))
        for row in range(plan.num_rows)
    ]
    assert max(used) <= ROW_LENGTH
    assert sum(used) == plan.num_columns
    assert max(len(segment.tokens) for segment in all_segments(plan)) == 20  # the longest of 16 columns
    assert predicted(plan) == Counter(range(corpus.num_tokens))
    plain = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=0, concat_documents=False)
    assert plan.settings != plain.settings


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).geometric(1 / 40, 3000).tolist()
    plan = plan_corpus(make_corpus(lengths), row_length=128, lookahead=1, concat_documents=False)
    assert plan.num_columns / (plan.num_rows * 128) > 0.99


def test_windows_bound_what_is_packed_together_and_lose_nothing(monkeypatch):
    monkeypatch.setattr(row_plan, "_WINDOW", 10)
    monkeypatch.setattr(row_plan, "_DOCUMENTS", 7)
    corpus = make_corpus(LENGTHS["mixed"])
    plan = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=0, concat_documents=False)
    assert predicted(plan) == Counter(range(corpus.num_tokens))
    check_rows(plan)


def test_a_plan_is_made_once_and_kept_beside_the_tokens(tmp_path, monkeypatch):
    corpus = make_corpus(LENGTHS["mixed"], directory=tmp_path / "corpus")
    first = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=False, seed=1)
    plan_corpus(corpus, row_length=ROW_LENGTH + 1, lookahead=1, concat_documents=False)
    made = sorted(path.name for path in (tmp_path / "corpus").glob("rows-*"))
    assert len(made) == 2  # one for each row_length, and no temporary folder
    monkeypatch.setattr(row_plan, "_write_rows", lambda *args: pytest.fail("planned again"))
    again = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=False, seed=2)
    assert [s.tokens.tolist() for s in all_segments(again)] == [s.tokens.tolist() for s in all_segments(first)]
    assert again.settings == first.settings  # the seed has no part in it


def test_of_two_processes_one_plans(tmp_path, monkeypatch):
    corpus = make_corpus(LENGTHS["mixed"], directory=tmp_path / "corpus")
    monkeypatch.setattr(stored, "_POLL", 0.02)
    write, plans, planned = row_plan._write_rows, [], []

    def slowly(*args):
        planned.append(args)
        time.sleep(0.2)
        return write(*args)

    def plan():
        plans.append(plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=False))

    monkeypatch.setattr(row_plan, "_write_rows", slowly)
    threads = [threading.Thread(target=plan) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(planned) == 1
    for each in plans:
        check_rows(each)


@pytest.mark.parametrize("name", ["starts.bin", "lengths.bin", "ends.bin", "rows.json"])
def test_a_damaged_plan_is_named_and_made_anew(tmp_path, caplog, name):
    corpus = make_corpus(LENGTHS["mixed"], directory=tmp_path / "corpus")
    expected = [
        segment.tokens.tolist()
        for segment in all_segments(plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=False))
    ]
    [folder] = (tmp_path / "corpus").glob("rows-*")
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 3] ^= 1
    (folder / name).write_bytes(content)
    again = plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=False)
    assert [s.tokens.tolist() for s in all_segments(again)] == expected
    assert f"{folder}: damaged: {name} is not what was written" in caplog.text
    assert folder.stat().st_mode == (tmp_path / "corpus").stat().st_mode  # of the umask


def test_a_full_disk_is_a_failure_that_says_so(tmp_path, monkeypatch):
    corpus = make_corpus(LENGTHS["mixed"], directory=tmp_path / "corpus")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(row_plan, "_write_rows", full)
    with pytest.raises(RunFailure, match=r"rows-.*cannot be written \([\d,]+ bytes free there\).*No space left"):
        plan_corpus(corpus, row_length=ROW_LENGTH, lookahead=1, concat_documents=False)
    assert not list((tmp_path / "corpus").glob("rows-*"))


@pytest.mark.parametrize("across", [True, False])
@pytest.mark.parametrize(("lengths", "lookahead"), [([], 0), ([1], 1), ([], 1)])
def test_a_corpus_without_anything_to_predict_is_refused(across, lengths, lookahead):
    with pytest.raises(UserError, match="corpus: . documents of . tokens in all leave nothing to learn from"):
        plan_corpus(make_corpus(lengths), row_length=ROW_LENGTH, lookahead=lookahead, concat_documents=across)


def test_rows_out_of_range_are_refused():
    plan = plan_corpus(make_corpus([40]), row_length=ROW_LENGTH, lookahead=0, concat_documents=True)
    for row in (-1, plan.num_rows):
        with pytest.raises(IndexError):
            plan.segments(row)


def test_planning_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    """The arrays of the plan alone would be 3.6 MB."""
    monkeypatch.setattr(row_plan, "_WINDOW", 2048)
    monkeypatch.setattr(row_plan, "_DOCUMENTS", 2048)
    corpus = make_corpus(np.full(300_000, 3), directory=tmp_path / "corpus")
    tracemalloc.start()
    plan = plan_corpus(corpus, row_length=512, lookahead=1, concat_documents=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.num_columns == 600_000
    assert peak < 1.5e6


def test_reading_all_of_a_corpus_does_not_fill_resident_memory(tmp_path):
    """An epoch over 400 MB of tokens, in a process of its own."""
    code = """
import sys
import numpy as np
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from helpers.memory import resident_peak
from jaxlm.data.corpus.corpus import Corpus, map_array
from jaxlm.data.corpus.row_plan import plan_corpus
folder = Path(sys.argv[1])
with (folder / "tokens").open("wb") as file:
    file.truncate(400_000_000)
corpus = Corpus("c", map_array(folder / "tokens", np.uint16), np.asarray([0, 200_000_000]), np.zeros(1, np.uint64), 1,
                "f")
plan = plan_corpus(corpus, row_length=1024, lookahead=1, concat_documents=True, seed=0)
before = resident_peak()
for row in np.random.default_rng(0).permutation(plan.num_rows).tolist():
    plan.segments(row)
print(plan.num_rows, resident_peak() - before)
"""
    out = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(TESTS)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows_read, megabytes = map(int, out.split())
    assert rows_read > 190_000
    assert megabytes < 290
