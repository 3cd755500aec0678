"""Question answering without a model: answers read and placed, windows, spans, predictions, thresholds, bad rows."""

from __future__ import annotations

import itertools
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxlm.data.config import CleanConfig, DataConfig
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.packing import build_batch
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.objectives.spans import span_loss
from jaxlm.report.sections import write_analysis
from jaxlm.tasks.answer_cells import place_answer, read_answers
from jaxlm.tasks.answer_windows import Span, WindowTokens, best_spans
from jaxlm.tasks.question_answering import Candidates, QuestionAnswering, QuestionAnsweringConfig
from jaxlm.tasks.records import Answer, Context, Request
from jaxlm.tokenizer.tokenizer import load_tokenizer

CONTEXT = "The cafe\u0301 in Zürich\topened in 1911;\r\nits owner, Ada Lovelace 🙂, sold it. 今天很好 שלום."


@pytest.fixture(scope="module")
def tokenizer(shared_data):
    return load_tokenizer(shared_data / "tokenizers/bert-base-uncased")


def row(text: str | None = "1911", start: int | None = None, **changes):
    answers = [] if text is None else [{"text": text, "answer_start": CONTEXT.find(text) if start is None else start}]
    return {"id": "q", "question": "When?", "context": CONTEXT, "answers": answers, **changes}


def table(*rows) -> Table:
    columns = tuple(dict.fromkeys(key for each in rows for key in each))
    rows = tuple({**dict.fromkeys(columns), **each} for each in rows)
    return Table("some.jsonl", columns, rows, tuple(range(1, len(rows) + 1)))


def make(tokenizer, *rows, on_bad_row="stop", max_length=64, stride=8, **config) -> QuestionAnswering:
    sources = TableSources({"train": table(*rows)}, {}, ("question", "context")) if rows else None
    data = DataConfig(max_length=max_length, stride=stride, on_bad_row=on_bad_row)
    return QuestionAnswering.create(QuestionAnsweringConfig(**config), Context(data, tokenizer), sources)


@pytest.mark.parametrize(
    "cell",
    [
        {"text": ["a b", "c"], "answer_start": [3, 5]},
        [{"text": "a b", "answer_start": 3}, {"answer_start": 5.0, "text": "c"}],
        '{"text": ["a b", "c"], "answer_start": [3, 5]}',
        "{'text': ['a b', 'c'], 'answer_start': [3, 5]}",
        '[{"text": "a b", "answer_start": "3"}, {"text": "c", "answer_start": 5}, {"text": " ", "answer_start": 0}]',
    ],
)
def test_forms_of_answers(cell):
    assert read_answers(cell) == [("a b", 3), ("c", 5)]


def test_odd_answers():
    for empty in ([], {"text": [], "answer_start": []}, "[]", {"text": [""], "answer_start": [0]}, {"text": []}):
        assert read_answers(empty) == []
    assert read_answers(["x", "y"]) == [("x", None), ("y", None)]
    assert read_answers("on a Monday") == [("on a Monday", None)]
    assert read_answers({"text": "x", "answer_start": 2}) == [("x", 2)]
    for cell, message in [
        (None, "found none"), (float("nan"), "found none"), ("", "found none"), (3, "expected {"),
        ("[1", "neither JSON"), ({"text": ["x"], "answer_start": []}, "1 texts, but 0"),
        ([{"text": 3}], "expected an answer's text"),
        ([{"text": "x", "answer_start": 1.5}], "whole number"), ([{"text": "x", "answer_start": True}], "whole number"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            read_answers(cell)


def test_answers_are_placed():
    """Where the row says; else where they occur once near by; never at one of several places."""
    text = "x" * 200 + " one two one " + "y" * 200
    for start, expected in [(205, (205, 208, False)), (204, (205, 208, True)), (230, (205, 208, True)), (260, None),
                            (-1, (205, 208, True)), (None, (205, 208, True))]:  # fmt: skip
        [answer] = read_answers([{"text": "two", "answer_start": start}])
        assert place_answer(answer, text) == expected, start
    [twice] = read_answers([{"text": "one", "answer_start": 203}])
    assert place_answer(twice, text) is None and place_answer(twice._replace(start=209), text) == (209, 212, False)
    [spaced] = read_answers([{"text": " two ", "answer_start": 204}])
    assert place_answer(spaced, text) == (205, 208, False)
    [overlapping] = read_answers([{"text": "xx", "answer_start": -1}])
    assert place_answer(overlapping, "xxx") is None


@pytest.mark.parametrize(
    "answer", ["cafe\u0301", "1911", "Ada Lovelace 🙂", "很好", "שלום", "Zürich\topened", "1911;\r\nits"]
)
def test_windows_hold_their_answers(tokenizer, answer):
    """A window has the whole question; the ends point to the answer, and back to its characters."""
    task = make(tokenizer, row(answer), max_length=26, stride=6)
    examples = task.examples(table(row(answer, question="  When did it open?")), labelled=True, key="data.train")
    assert len(examples.examples) > 1 and examples.counts["windows"] == len(examples.examples)
    assert examples.counts["truncated"] == 1 and examples.counts["unreachable"] == 0
    asked = tokenizer.encode_with_offsets("When did it open?")[0].tolist()
    found, covered = 0, set()
    for example in examples.examples:
        start, end = int(example.arrays["start_positions"]), int(example.arrays["end_positions"])
        assert example.tokens[1 : 1 + len(asked)].tolist() == asked and len(example.tokens) <= 26
        first, offsets = example.host
        assert (example.arrays["token_types"] == 1).argmax() == first and example.weight == 1
        covered |= set(map(tuple, offsets.tolist()))
        if not start:
            assert not end
            continue
        found += 1
        assert CONTEXT[offsets[start - first, 0] : offsets[end - first, 1]] == answer
        logits = np.zeros((len(example.tokens), 2), np.float32)
        logits[start, 0] = logits[end, 1] = 1
        span = best_spans(logits, example.host, 1, 30)[0]
        assert span.score == 2 and CONTEXT[span.start : span.end] == answer
    assert found >= 1 and len(covered) == len(tokenizer.encode_with_offsets(CONTEXT)[0])


def test_best_spans_are_exact(tokenizer):
    """All pairs in order, at most so long, no two of the same characters, none outside the context."""
    rng = np.random.default_rng(0)
    gpt2_like = np.asarray([[0, 1], [0, 1], [2, 4], [4, 4], [4, 6], [7, 9]])
    for offsets, most in [(gpt2_like, 3), (np.stack([np.arange(40), np.arange(40) + 1], 1), 7)]:
        logits = rng.normal(size=(len(offsets) + 5, 2)).astype(np.float32)
        logits[:3] += 100  # the question
        pairs = itertools.product(range(len(offsets)), repeat=2)
        best: dict[tuple[int, int], float] = {}
        for i, j in pairs:
            if i <= j < i + most and offsets[i, 0] < offsets[i, 1] and offsets[j, 0] < offsets[j, 1]:
                key = int(offsets[i, 0]), int(offsets[j, 1])
                best[key] = max(best.get(key, -np.inf), float(logits[i + 3, 0]) + float(logits[j + 3, 1]))
        expected = sorted(((score, *key) for key, score in best.items()), reverse=True)[:6]
        found = best_spans(logits, WindowTokens(3, offsets), 6, most)
        assert [tuple(span) for span in found] == expected


def test_loss_is_over_the_own_tokens(tokenizer):
    """Packed, a softmax for each window; the mean of both ends."""
    task = make(tokenizer, row(), max_length=26, stride=6)
    examples = task.examples(table(row(), row("Ada", id="r")), labelled=True, key="x").examples
    batch = build_batch(examples, [[0, 1], [2]], task.fields, num_rows=3, row_lengths={"": 80}, slots=3, pad_id=0)
    logits = np.random.default_rng(0).normal(size=(3, 80, 2)).astype(np.float32)
    total, weight = span_loss(jnp.asarray(logits), {k: jnp.asarray(v) for k, v in batch.items() if k != "examples"})
    expected = 0.0
    for b, s, i in [(0, 0, 0), (0, 1, 1), (1, 0, 2)]:
        inside = batch["segment_ids"][b] == s + 1
        own = log_softmax(logits[b, inside].astype(np.float64), axis=0)
        arrays = examples[i].arrays
        expected -= (own[int(arrays["start_positions"]), 0] + own[int(arrays["end_positions"]), 1]) / 2
    assert float(weight) == 3 and float(total) == pytest.approx(expected, rel=1e-5)
    assert any("answer '1911'" in line or "answer 'ada'" in line for line in task.show(batch))


BAD = [
    (row("1912", 46), "does not occur in the context"),
    (row("e", 4), "times, and it does not stand at answer_start=4"),
    (row(None), "the question has no answer; expected one, or task.no_answer=true"),
    (row(answers=None), "answers: expected the answers, found none"),
    (row(id="first"), "id='first' is also that of some.jsonl, row 1"),
    (row(question="why " * 60), "the question has 60 tokens and leaves 1 of data.max_length=64"),
    (row(question=" "), "question is empty"),
    (row(context=None, answers=[]), "context is missing"),
    (row(is_impossible=True), "the question has answers, and is_impossible is true"),
    (row("\u0007", context="a \u0007 b", answers=["\u0007"]), "the tokenizer keeps nothing of"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_rows(tokenizer, bad, message, caplog):
    """Refused with their place, or skipped and counted."""
    rows = row(id="first"), bad, row(id="last")
    task = make(tokenizer, no_answer=False)
    with pytest.raises(UserError) as error:
        task.examples(table(*rows), labelled=True, key="data.train")
    assert str(error.value).startswith("some.jsonl, row 2: ") and message in str(error.value)
    with caplog.at_level(logging.WARNING, "jaxlm"):
        examples = make(tokenizer, no_answer=False, on_bad_row="skip").examples(table(*rows), labelled=True, key="x")
    assert {example.row for example in examples.examples} == {0, 2} and list(examples.errors) == [1]
    assert examples.counts["skipped"] == 1 and "1 of 3 rows are bad" in caplog.text and examples.labels[1] is None


def test_what_is_amiss_is_counted(tokenizer, tmp_path):
    rows = [row("1911", 40), row("1911", id="b", answers=["gone", "1911"]), row("Ada Lovelace", id="c")]
    examples = make(tokenizer, *rows).examples(table(*rows), labelled=True, key="x")
    assert examples.counts["repaired"] == 2 and examples.counts["misplaced"] == 1 and examples.counts["skipped"] == 0
    assert examples.labels == [("1911",), ("gone", "1911"), ("Ada Lovelace",)]
    with pytest.raises(UserError, match="is_impossible is false"):
        make(tokenizer, no_answer=True).examples(table(row(None, is_impossible=False)), labelled=True, key="x")
    for clean in (CleanConfig(unicode="NFC"), CleanConfig(control_characters=True), CleanConfig(whitespace=True)):
        with pytest.raises(UserError, match="data.clean.[a-z_]+: it rewrites texts"):
            QuestionAnswering.open(QuestionAnsweringConfig(), Request(DataConfig(clean=clean), (), tmp_path))


def test_settings_follow_the_data(tokenizer):
    """Questions without answers and Chinese texts are seen; the config has the last word; a checkpoint is followed."""
    assert make(tokenizer, row()).settings[:2] == (False, "squad")
    assert make(tokenizer, row(), row(None, id="b")).settings.no_answer
    assert not make(tokenizer, row(), row(None, id="b", is_impossible=False)).settings.no_answer
    assert make(tokenizer, row(is_impossible="False"), row(None, is_impossible="True")).settings.no_answer
    for absent in (float("nan"), None, " "):  # the column says nothing
        said = make(tokenizer, row(is_impossible=absent), row(None, id="b", is_impossible=absent))
        assert said.settings.no_answer and not make(tokenizer, row(is_impossible=absent)).settings.no_answer
        rows = table(row(is_impossible=absent), row(None, id="b", is_impossible=absent))
        assert said.examples(rows, labelled=True, key="x").labels == [("1911",), ()]
    assert make(tokenizer, row(context="今天的天气很好", answers=["天气"])).settings.scoring == "cmrc"
    assert make(tokenizer, row(), no_answer=True, scoring="cmrc").settings[:2] == (True, "cmrc")
    tuned = make(tokenizer, no_answer=True).tune([answer(None, 3.0), answer("1911", 1.0)])
    known = QuestionAnswering.create(
        QuestionAnsweringConfig(), Context(DataConfig(), tokenizer, tuned.hf_config()), None
    )
    assert known.settings == tuned.settings and tuned.settings.threshold == 2.0
    with pytest.raises(UserError, match="label_smoothing"):
        QuestionAnswering.create(QuestionAnsweringConfig(), Context(DataConfig(), tokenizer, label_smoothing=0.1), None)
    assert QuestionAnsweringConfig.of_texts(["q", "c"]).context == "c"
    with pytest.raises(UserError, match="question and context"):
        QuestionAnsweringConfig.of_texts(["q"])


def answer(text: str | None, difference: float, predicted: str = "1911") -> Answer:
    start = CONTEXT.index(predicted)
    spans = (Span(5.0, start, start + len(predicted)), Span(4.0, 0, 3))
    return Answer(row(text), () if text is None else (text,), Candidates(5.0 + difference, spans))


def test_predictions(tokenizer):
    kept = answer("1911", 2.0).kept
    plain = make(tokenizer, row())
    start = CONTEXT.index("1911")
    shares = np.exp([0, -1]) / np.exp([0, -1]).sum()
    assert plain.prediction(row(), kept) == {
        "answer": "1911",
        "start": start,
        "end": start + 4,
        "score": pytest.approx(shares[0]),
    }
    null = np.exp([0, -1, 2]) / np.exp([0, -1, 2]).sum()
    task = make(tokenizer, no_answer=True, n_best=3)
    found = task.prediction(row(), kept)
    assert found["answer"] == "" and found["start"] == found["end"] == 0 and found["score"] == pytest.approx(null[2])
    assert found["no_answer_score"] == found["score"]
    assert [entry["answer"] for entry in found["n_best"]] == ["", "1911", "The"]
    assert [entry["score"] for entry in found["n_best"]] == pytest.approx([null[2], null[0], null[1]])
    assert task.prediction(row(), kept._replace(null=0.0))["answer"] == "1911"
    for each in (plain, task):
        assert each.prediction(row(context=" "), Candidates(1.0, ()))["answer"] == ""
    first, second = (Span(1.0, 0, 2), Span(0.5, 3, 4)), (Span(4.0, 0, 2),)
    windows = [(Example({}, 0), Candidates(3.0, first)), (Example({}, 0), Candidates(2.0, second))]
    assert plain.answer(row(), windows) == (2.0, (Span(4.0, 0, 2), Span(0.5, 3, 4)))


def test_scores_and_threshold(tokenizer, tmp_path):
    """The threshold is tuned; scores are those of given answers, best ones those of the best threshold."""
    answers = [answer("1911", 0.0), answer(None, 2.0), answer("in 1911", 1.0), answer(None, 0.5), answer("Ada", 4.0)]
    task = make(tokenizer, no_answer=True)
    sums = {"loss": 3.0, "weight": 6.0}
    dataset = RowDataset(Examples(table(row(), row(None)), [], [("1911",), ()], {}), task.fields)
    before = task.scores(sums, answers, dataset)
    assert before["loss"] == 0.5 and before["exact_match"] == 3 / 5 and before["has_answer_exact_match"] == 1 / 3
    tuned = task.tune(answers)
    after = tuned.scores(sums, answers, dataset)
    assert tuned.settings.threshold == 0.25 and after["f1"] == after["best_f1"] == before["best_f1"] == 3 / 5
    assert after["has_answer_f1"] == 1 / 3 and after["no_answer_f1"] == 1.0
    assert [metric.name for metric in task.metrics][:3] == ["best_f1", "loss", "f1"]
    assert {metric.name for metric in task.metrics} == set(after)
    plain = make(tokenizer, row())
    found = plain.scores(sums, [answers[0], answers[2], Answer(row(), None, answers[0].kept)], dataset)
    assert found == {"loss": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2), "exact_match": 0.5}
    assert {metric.name for metric in plain.metrics} == set(found) and plain.tune(answers) is plain
    sections = tuned.report(answers)
    write_analysis(tmp_path / "analysis.json", sections)
    assert [section.title for section in sections] == [
        "Answered or not", "F1 by threshold", "Scores by question word", "Scores by length of the answer",
        "Calibration", "Worst answers",
    ]  # fmt: skip
    assert sections[0].content["counts"].tolist() == [[1, 2], [0, 2]] and "5 questions, 2 of them" in sections[0].note
    assert sections[-1].content["rows"][0][2:4] in (["Ada", "(no answer)"], ["in 1911", "(no answer)"])
    assert plain.report([answers[0]])[-1].title == "Calibration" and plain.report([]) == []
    assert task.baselines(dataset, dataset) == {}
    scored = make(tokenizer, no_answer=True, baselines=True).baselines(dataset, dataset)
    assert scored["no answer"] == {"exact_match": 0.5, "f1": 0.5}
    assert set(scored) == {"no answer", "sentence most like the question"}
