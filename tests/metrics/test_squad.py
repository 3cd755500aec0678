"""Exact match and F1 of answers against the official scripts, rewritten here from their published definitions."""

from __future__ import annotations

import random
import re
import string
from collections import Counter

import pytest

from jaxlm.metrics.cmrc import mixed_tokens, score_cmrc
from jaxlm.metrics.squad import best_threshold, score_v1, score_v2

PIECES = [
    "", " ", "the", "The", "a", "an", "A.", "cat", "cats", "Cat", "sat", "on", "mat", "U.S.", "U.S", "1990s", "1,000",
    "--", "—", "「」", "café", "cafe\u0301", "don't", "\u00a0", "，", "。", "天安门", "北京", "anthem", "$", "\t",
    "🙂", "Ａ",
]  # fmt: skip


def phrase(rng: random.Random) -> str:
    return rng.choice(["", " "]).join(rng.choice(PIECES) for _ in range(rng.randint(0, 5)))


def cases(seed: int) -> list[tuple[str, list[str]]]:
    """Predictions and right answers; many are alike."""
    rng = random.Random(seed)
    made = []
    for _ in range(300):
        golds = [phrase(rng) for _ in range(rng.randint(1, 4))]
        prediction = rng.choice([phrase(rng), rng.choice(golds), f"the {rng.choice(golds)}!", rng.choice(golds)[1:]])
        made.append((prediction, golds))
    return made


# The scripts.


def normalized(s: str) -> str:
    lower = s.lower()
    no_punctuation = "".join(ch for ch in lower if ch not in set(string.punctuation))
    no_articles = re.sub(r"\b(a|an|the)\b", " ", no_punctuation)
    return " ".join(no_articles.split())


def f1_v1(prediction: str, gold: str) -> float:
    p, g = normalized(prediction).split(), normalized(gold).split()
    same = sum((Counter(p) & Counter(g)).values())
    if same == 0:
        return 0
    precision, recall = same / len(p), same / len(g)
    return 2 * precision * recall / (precision + recall)


def f1_v2(gold: str, prediction: str) -> float:
    g = normalized(gold).split() if gold else []
    p = normalized(prediction).split() if prediction else []
    same = sum((Counter(g) & Counter(p)).values())
    if len(g) == 0 or len(p) == 0:
        return int(g == p)
    if same == 0:
        return 0
    precision, recall = same / len(p), same / len(g)
    return 2 * precision * recall / (precision + recall)


def raw_v2(prediction: str, answers: list[str]) -> tuple[float, float]:
    golds = [a for a in answers if normalized(a)]
    if not golds:
        golds = [""]
    return max(int(normalized(a) == normalized(prediction)) for a in golds), max(f1_v2(a, prediction) for a in golds)


def best_v2(preds: dict, scores: dict, na_probs: dict, has_answer: dict) -> tuple[float, float]:
    current = best = sum(1 for k in has_answer if not has_answer[k])
    threshold = 0.0
    for qid in sorted(na_probs, key=lambda k: na_probs[k]):
        if has_answer[qid]:
            difference = scores[qid]
        else:
            difference = -1 if preds[qid] else 0
        current += difference
        if current > best:
            best, threshold = current, na_probs[qid]
    return best / len(scores), threshold


def test_version_1():
    for prediction, golds in cases(1):
        found = score_v1(prediction, golds)
        assert found.exact_match == max(normalized(prediction) == normalized(g) for g in golds)
        assert found.f1 == pytest.approx(max(f1_v1(prediction, g) for g in golds), abs=1e-12), (prediction, golds)


def test_version_2():
    rng = random.Random(2)
    for prediction, golds in cases(2):
        golds = rng.choice([golds, golds, []])
        prediction = rng.choice([prediction, prediction, ""])
        assert tuple(score_v2(prediction, golds)) == pytest.approx(raw_v2(prediction, golds), abs=1e-12), (
            prediction,
            golds,
        )


def test_best_threshold():
    """Ties of the no-answer score included."""
    rng = random.Random(3)
    for _ in range(300):
        number = rng.randint(1, 12)
        ids = list(range(number))
        answerable = {k: rng.random() < 0.6 for k in ids}
        preds = {k: rng.choice(["", "x", "y"]) for k in ids}
        scores = {
            k: rng.random() if preds[k] and answerable[k] else float(answerable[k] == bool(preds[k])) for k in ids
        }
        na = {k: rng.choice([rng.random(), 0.5, 0.25]) for k in ids}
        expected, threshold = best_v2(preds, scores, na, answerable)
        found = best_threshold(
            [scores[k] for k in ids], [bool(preds[k]) for k in ids], list(answerable.values()), list(na.values())
        )
        assert found.score == pytest.approx(expected, abs=1e-12)
        assert found.threshold == threshold if threshold else found.threshold < min(na.values())


# CMRC 2018.

SP = [*"-:_*^/\\~`+=，。：？！“”；’《》", "……", *"·、「」（）－～『』"]


def segmented(text: str) -> list[str]:
    """mixed_segmentation(text, rm_punc=True); words of these cases are what stands between spaces."""
    found, word = [], ""
    for char in str(text).lower().strip():
        if char in SP:
            continue
        if re.search("[\u4e00-\u9fa5]", char):
            if word != "":
                found.extend(word.split())
                word = ""
            found.append(char)
        else:
            word += char
    return found + (word.split() if word != "" else [])


def lcs(s1: list[str], s2: list[str]) -> int:
    table = [[0] * (len(s2) + 1) for _ in range(len(s1) + 1)]
    longest = 0
    for i in range(len(s1)):
        for j in range(len(s2)):
            if s1[i] == s2[j]:
                table[i + 1][j + 1] = table[i][j] + 1
                longest = max(longest, table[i + 1][j + 1])
    return longest


def f1_cmrc(answers: list[str], prediction: str) -> float:
    scores = []
    for answer in answers:
        a, p = segmented(answer), segmented(prediction)
        same = lcs(a, p)
        if same == 0:
            scores.append(0)
            continue
        precision, recall = same / len(p), same / len(a)
        scores.append(2 * precision * recall / (precision + recall))
    return max(scores)


def exact_cmrc(answers: list[str], prediction: str) -> int:
    def plain(text: str) -> str:
        return "".join(char for char in text.lower().strip() if char not in SP)

    return int(any(plain(answer) == plain(prediction) for answer in answers))


def test_cmrc():
    rng = random.Random(4)
    pieces = [
        "天安门",
        "北京",
        "，",
        "。",
        "《",
        "》",
        "1949年",
        "Kindle",
        "Fire",
        "HD",
        " ",
        "ω-force",
        "（",
        "）",
        "的",
        "3",
        "！",
        "Ａ",
    ]
    for _ in range(300):
        golds = ["".join(rng.choice(pieces) for _ in range(rng.randint(0, 6))) for _ in range(rng.randint(1, 3))]
        own = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 6)))
        prediction = rng.choice([own, rng.choice(golds), rng.choice(golds)[1:], rng.choice(golds) + "。"])
        found = score_cmrc(prediction, golds)
        assert found.exact_match == exact_cmrc(golds, prediction)
        assert found.f1 == pytest.approx(f1_cmrc(golds, prediction), abs=1e-12), (prediction, golds)
    assert score_cmrc("", []) == (1, 1) and score_cmrc("北", []) == (0, 0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('they\'ll (not) say "hi" to 3.5% of u.s. dogs.', "they 'll ( not ) say `` hi '' to 3.5 % of u.s. dogs ."),
        ("cannot, don't; john's $5... 1,000", "can not , do n't ; john 's $ 5 ... 1,000"),
        ("北京kindle fire的hd", "北 京 kindle fire 的 hd"),
    ],
)
def test_words_between_chinese_characters(text, words):
    """As NLTK's word_tokenize splits them, which the script calls."""
    assert mixed_tokens(text) == words.split()
