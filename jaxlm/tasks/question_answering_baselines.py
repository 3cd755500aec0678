"""A simple system that answers questions: the sentence that shares the rarest words with the question."""

from __future__ import annotations

import math
import re
from collections import Counter

_SENTENCE = re.compile(r"[^.!?。！？\n]+[.!?。！？]*")
_WORD = re.compile("[\u3400-\u9fff\u3040-\u30ff]|\\w+")


def sentence_like_question(question: str, context: str) -> str:
    """Returns the sentence of a context whose words in common with the question weigh most, rare words more."""
    sentences = [match.strip() for match in _SENTENCE.findall(context) if match.strip()]
    if not sentences:
        return ""
    bags = [Counter(_WORD.findall(sentence.lower())) for sentence in sentences]
    asked = set(_WORD.findall(question.lower()))
    within = Counter(word for bag in bags for word in bag)
    weights = [
        sum(math.log1p(len(bags) / within[word]) for word in asked & bag.keys()) / math.sqrt(1 + bag.total())
        for bag in bags
    ]
    return sentences[max(range(len(sentences)), key=weights.__getitem__)]
