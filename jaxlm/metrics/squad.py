"""Exact match and F1 of answers as SQuAD's scripts, versions 1.1 and 2.0, define them.

Rajpurkar et al., arXiv:1606.05250 and arXiv:1806.03822.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


class AnswerScore(NamedTuple):
    """How good a predicted answer is, each from 0 to 1."""

    exact_match: float
    f1: float


def normalize_answer(text: str) -> str:
    """Returns a text in lower case, without ASCII punctuation, English articles and surplus white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def score_v1(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """Returns the best scores over the right answers, of which there is at least one."""
    predicted = normalize_answer(prediction)
    golds = [normalize_answer(answer) for answer in answers]
    return AnswerScore(
        float(any(predicted == gold for gold in golds)),
        max(_overlap(predicted.split(), gold.split()) for gold in golds),
    )


def score_v2(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """Returns the best scores over the right answers; where there is none, the right prediction is "".

    Answers of which normalization leaves nothing do not count, unless there are no others.
    """
    predicted = normalize_answer(prediction)
    golds = [gold for gold in map(normalize_answer, answers) if gold] or [""]
    f1 = max(
        _overlap(predicted.split(), gold.split()) if predicted and gold else float(predicted == gold) for gold in golds
    )
    return AnswerScore(float(predicted in golds), f1)


def _overlap(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """F1 of two bags of words."""
    common = (Counter(predicted) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


class BestThreshold(NamedTuple):
    """The mean score that the best threshold gives, that threshold, and one in the middle of those that are as good."""

    score: float
    threshold: float
    middle: float


def best_threshold(
    scores: Sequence[float], predicted: Sequence[bool], answerable: Sequence[bool], no_answer_scores: Sequence[float]
) -> BestThreshold:
    """Returns the threshold on the score of "no answer" that gives the highest mean score.

    A question is left without an answer where its no-answer score is above the threshold. As in the script, questions
    whose no-answer scores are equal are taken one after another, in the given order.

    Args:
      scores: of each question's answer, were it given.
      predicted: whether that answer is a text at all.
      answerable: whether the question has an answer.
      no_answer_scores: any real numbers.
    """
    order = np.argsort(np.asarray(no_answer_scores, np.float64), kind="stable").tolist()
    total = best = float(len(answerable) - sum(answerable))
    threshold = float(no_answer_scores[order[0]]) - 1.0  # below all of them: no question is answered
    for i in order:
        total += scores[i] if answerable[i] else -float(predicted[i])
        if total > best:
            best, threshold = total, float(no_answer_scores[i])
    above = [value for value in no_answer_scores if value > threshold]
    middle = (threshold + min(above)) / 2 if above else threshold + 1.0
    return BestThreshold(best / len(order), threshold, float(middle))
