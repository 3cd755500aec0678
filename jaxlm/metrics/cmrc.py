"""Exact match and F1 of Chinese answers as the script of CMRC 2018 defines them (Cui et al., arXiv:1810.07366).

A Chinese character is a token; what stands between them is split as the Penn Treebank splits words. F1 is that of the
longest common run of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jaxlm.metrics.squad import AnswerScore

_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_HAN = re.compile("[\u4e00-\u9fa5]")


def _rules(*rules: tuple[str, str]) -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(pattern), replacement) for pattern, replacement in rules]


_MARKS = _rules(
    (r"([«‘„])", r" \1 "),
    (r"^\"", "``"),
    (r"(``)", r" \1 "),
    (r"([ (\[{<])(\"|'{2})", r"\1 `` "),
    (r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b", r"\1 \2"),
    (r"([^.])(\.)([\])}>\"'»]*)\s*$", r"\1 \2 \3 "),
    (r",([^\d])", r" , \1"),
    (r",$", " , "),
    (r"\.{2,}|[;@#$%&?!]", r" \g<0> "),
    (r"([^'])' ", r"\1 ' "),
    (r"[\]\[(){}<>]", r" \g<0> "),
)
_ENDINGS = _rules(
    (r"»", " » "),
    (r"''|\"", " '' "),
    (r"([^' ])('[smd]|') ", r"\1 \2 "),
    (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
    (r"\b(can)(not)\b|\b(gim|lem)(me)\b|\b(gon)(na)\b|\b(wan)(na)(?=\s)|\b(got)(ta)\b", r" \1\3\5\7\9 \2\4\6\8\10 "),
)
"""The Treebank's rules for lower case, as NLTK applies them, less those for characters that the script removes."""


def score_cmrc(prediction: str, answers: Sequence[str]) -> AnswerScore:
    """Returns the best scores over the right answers; where there is none, the right prediction is ""."""
    if not answers:
        right = float(not prediction)
        return AnswerScore(right, right)
    predicted, tokens = _characters(prediction), mixed_tokens(prediction)
    exact = float(any(_characters(answer) == predicted for answer in answers))
    return AnswerScore(exact, max(_f1(mixed_tokens(answer), tokens) for answer in answers))


def mixed_tokens(text: str) -> list[str]:
    """Returns Chinese characters and the words between them, in lower case, without the script's punctuation."""
    found: list[str] = []
    word = ""
    for character in text.lower().strip():
        if character in _PUNCTUATION:
            continue
        if _HAN.match(character):
            found += [*_words(word), character]
            word = ""
        else:
            word += character
    return found + _words(word)


def _words(text: str) -> list[str]:
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    text = f" {text} "
    for pattern, replacement in _ENDINGS:
        text = pattern.sub(replacement, text)
    return text.split()


def _characters(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _PUNCTUATION)


def _f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    common = _longest_common_run(gold, predicted)
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of tokens that both have."""
    longest, lengths = 0, [0] * (len(second) + 1)
    for a in first:
        previous = lengths
        lengths = [0, *((previous[j] + 1 if a == b else 0) for j, b in enumerate(second))]
        longest = max(longest, *lengths)
    return longest
