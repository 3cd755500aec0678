"""Sections of report.html about answers: scores by kind of question, thresholds, calibration, the worst errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxlm.metrics.squad import AnswerScore
from jaxlm.report.sections import ReportSection, excerpt
from jaxlm.tasks.calibration import calibration_section

_QUESTION_WORDS = ("what", "who", "when", "where", "which", "why", "how many", "how much", "how")
_LENGTHS = (1, 2, 5, 10, 20)
"""Words, or Chinese characters, of an answer; each the last of its group."""
_ERRORS = 20
_AROUND = 80
"""Characters of the context that are shown on either side of an answer."""
_POINTS = 200


class AnsweredQuestion(NamedTuple):
    """A labelled question and its prediction."""

    line: int
    """Of predictions/<split>.jsonl, from 1."""
    question: str
    context: str
    answers: tuple[str, ...]
    prediction: Mapping[str, Any]
    score: AnswerScore
    best_f1: float
    """F1 of the best answer, were it given; 0 where there is no right answer."""
    difference: float
    """By how much the logits of "no answer" exceed the best answer's."""


def answer_sections(
    questions: Sequence[AnsweredQuestion], total: int, threshold: float | None, *, words: bool
) -> list[ReportSection]:
    """Describes the answers of a split; of bounded size, whatever the size of the split.

    Args:
      questions: those with a gold label.
      total: questions of the split.
      threshold: on `difference`, above which a question is left without an answer; None: all have one.
      words: answers are of words, and not of Chinese characters.
    Returns:
      The sections; [] if no question has a gold label.
    """
    if not questions:
        return []
    wrong = sum(question.score.exact_match < 1 for question in questions)
    note = f"{len(questions):,} questions, {wrong:,} of them not answered exactly ({wrong / len(questions):.1%})"
    if total > len(questions):
        note += f"; {total - len(questions):,} more have no gold answers and are not counted"
    answerable = [question for question in questions if question.answers]
    sections = []
    if threshold is not None:
        sections += [_abstentions(questions), _thresholds(questions, threshold)]
    if words:
        sections.append(_table("Scores by question word", "Question", questions, lambda q: _question_word(q.question)))
    if answerable:
        sections.append(
            _table("Scores by length of the answer", "Words" if words else "Characters", answerable,
                   lambda q: _length_group(_length(q.answers[0], words)))
        )  # fmt: skip
    sections += [_calibration(questions), *_worst_errors(questions)]
    return [sections[0]._replace(note=f"{note}. {sections[0].note}".strip()), *sections[1:]]


def _table(
    title: str, name: str, questions: Sequence[AnsweredQuestion], group: Callable[[AnsweredQuestion], tuple[int, str]]
) -> ReportSection:
    """Scores of groups of questions; a group is its place in the order and its name."""
    groups: dict[tuple[int, str], list[AnswerScore]] = {}
    for question in questions:
        groups.setdefault(group(question), []).append(question.score)
    rows = [
        [label, float(np.mean([s.exact_match for s in scores])), float(np.mean([s.f1 for s in scores])), len(scores)]
        for (_, label), scores in sorted(groups.items())
    ]
    return ReportSection(
        title, "table", {"columns": [name, "Exact match", "F1", "Questions"], "rows": rows, "bars": "F1"}
    )


def _question_word(question: str) -> tuple[int, str]:
    words = f" {' '.join(question.lower().split())} "
    places = [(words.find(f" {word} "), i) for i, word in enumerate(_QUESTION_WORDS) if f" {word} " in words]
    if not places:
        return len(_QUESTION_WORDS), "other"
    _, first = min(places)
    return first, _QUESTION_WORDS[first]


def _length(answer: str, words: bool) -> int:
    return len(answer.split()) if words else len("".join(answer.split()))


def _length_group(length: int) -> tuple[int, str]:
    for i, last in enumerate(_LENGTHS):
        if length <= last:
            begin = _LENGTHS[i - 1] + 1 if i else 0
            return i, str(last) if begin in (0, last) else f"{begin} to {last}"
    return len(_LENGTHS), f"more than {_LENGTHS[-1]}"


def _abstentions(questions: Sequence[AnsweredQuestion]) -> ReportSection:
    counts = np.zeros((2, 2), np.int64)
    for question in questions:
        counts[int(not question.answers), int(not question.prediction["answer"])] += 1
    return ReportSection("Answered or not", "matrix", {"labels": ["answer", "no answer"], "counts": counts},
                         "Shade: share of the questions that have an answer, or none.")  # fmt: skip


def _thresholds(questions: Sequence[AnsweredQuestion], threshold: float) -> ReportSection:
    """F1 by the threshold on the score of "no answer"."""
    ordered = sorted(questions, key=lambda question: question.difference)
    gains = [question.best_f1 if question.answers else -1.0 for question in ordered]
    f1 = (sum(not question.answers for question in questions) + np.cumsum(gains)) / len(questions)
    x = np.asarray([question.difference for question in ordered])
    shown = np.unique(np.linspace(0, len(x) - 1, min(len(x), _POINTS)).astype(int))
    shown = shown[np.abs(x[shown]) < 1e6]  # a context without words
    content = {
        "series": [{"x": x[shown], "y": f1[shown], "style": "line"}],
        "axes": {"x": "threshold on the score of no answer", "y": "F1", "y_range": [0, 1]},
        "alt": f"F1 by threshold, from {f1[0]:.3f} to {f1[-1]:.3f}; the highest is {f1.max():.3f}",
    }
    return ReportSection("F1 by threshold", "chart", content,
                         f"A question has no answer above the threshold, which is {threshold:.3f}.")  # fmt: skip


def _calibration(questions: Sequence[AnsweredQuestion]) -> ReportSection:
    return calibration_section(
        np.asarray([question.prediction["score"] for question in questions], np.float64),
        np.asarray([question.score.exact_match == 1 for question in questions]),
        predicted="probability of the predicted answer",
        share="share that is exact",
    )


def _worst_errors(questions: Sequence[AnsweredQuestion]) -> list[ReportSection]:
    wrong = [question for question in questions if question.score.f1 < 1]
    wrong.sort(key=lambda question: (question.score.f1, -question.prediction["score"]))
    rows = [
        [
            question.line,
            excerpt(question.question),
            excerpt(" | ".join(dict.fromkeys(question.answers)) or "(no answer)"),
            excerpt(question.prediction["answer"] or "(no answer)"),
            question.score.f1,
            float(question.prediction["score"]),
            _around(question),
        ]
        for question in wrong[:_ERRORS]
    ]
    columns = ["Line", "Question", "Gold", "Predicted", "F1", "Probability", "Context"]
    note = "Of the lowest F1, and most confident; line numbers are those of the split's file in predictions/."
    return [ReportSection("Worst answers", "texts", {"columns": columns, "rows": rows}, note)] if rows else []


def _around(question: AnsweredQuestion) -> str:
    """The context around the predicted answer, else around the right one."""
    start, end = int(question.prediction["start"]), int(question.prediction["end"])
    if end <= start and question.answers and (found := question.context.find(question.answers[0])) >= 0:
        start, end = found, found + len(question.answers[0])
    before, after = max(0, start - _AROUND), end + _AROUND
    shown = question.context[before:after]
    return excerpt(("… " if before else "") + shown + (" …" if after < len(question.context) else ""), 4 * _AROUND)
