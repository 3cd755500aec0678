"""BLEU, chrF and TER as sacreBLEU computes them (Post, arXiv:1804.08771), with its signatures."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

Tokenization = Literal["13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none"]
"""How BLEU splits a text into words: sacreBLEU's names."""
_MECAB = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko"}
"""What sacreBLEU needs beside itself, module names."""
_LANGUAGES: dict[str, Tokenization] = {
    "zh": "zh",
    "zho": "zh",
    "cmn": "zh",
    "ja": "ja-mecab",
    "jpn": "ja-mecab",
    "ko": "ko-mecab",
    "kor": "ko-mecab",
}


class TranslationScores(NamedTuple):
    """Scores of a corpus from 0 to 100, of which TER may exceed that."""

    bleu: float
    chrf: float
    ter: float


def translation_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], tokenization: Tokenization = "13a"
) -> TranslationScores:
    """Scores texts, each against one or more references of its own.

    TER splits by white space, in languages that have none between words by characters.

    Raises:
      ValueError: no text, or one without a reference.
    """
    streams = _streams(texts, references)
    scores = {name: metric.corpus_score(texts, streams).score for name, metric in _metrics(tokenization).items()}
    return TranslationScores(**{name: float(score) for name, score in scores.items()})


def signatures(references: Sequence[Sequence[str]], tokenization: Tokenization = "13a") -> dict[str, str]:
    """Returns sacreBLEU's signature of each score: version, settings and the number of references.

    Raises:
      ValueError: no text, or one without a reference.
    """
    found = {}
    counts = {len(given): list(given) for given in references}
    texts, few = [""] * len(counts), list(counts.values())  # the number of references is all that a signature needs
    for name, metric in _metrics(tokenization).items():
        metric.corpus_score(texts, _streams(texts, few))
        found[name] = str(metric.get_signature())
    return found


def _metrics(tokenization: Tokenization) -> dict[str, Any]:
    metrics: Any = importlib.import_module("sacrebleu.metrics")  # slow, and needed where texts are scored alone
    asian = tokenization in ("zh", "ja-mecab", "ko-mecab", "char")
    return {
        # A text of the training data may look as if it were split into words, of which sacreBLEU warns.
        "bleu": metrics.BLEU(tokenize=tokenization, force=True),
        "chrf": metrics.CHRF(),
        "ter": metrics.TER(normalized=asian, asian_support=asian),
    }


def _streams(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """The first reference of each text, the second, ...; None where a text has fewer."""
    if not texts or not all(references):
        raise ValueError("expected at least one text, and a reference of each")
    return [[given[i] if i < len(given) else None for given in references] for i in range(max(map(len, references)))]


def sentence_chrf(text: str, references: Sequence[str]) -> float:
    """Returns sacreBLEU's chrF of one text, from 0 to 1."""
    metrics: Any = importlib.import_module("sacrebleu.metrics")
    return float(metrics.CHRF().sentence_score(text, list(references)).score) / 100


def tokenization_of(language: str, references: Sequence[str]) -> Tokenization:
    """Returns the split that sacreBLEU recommends for a language.

    Args:
      language: a code such as `zh`, `zh_CN` or `zho_Hans`; of another word the letters of the references tell.
    """
    found = _LANGUAGES.get(language.replace("-", "_").split("_")[0].lower()) or _by_letters(references)
    return found if missing_splitter(found) is None else "char"


def missing_splitter(tokenization: Tokenization) -> str | None:
    """Returns the extra of sacreBLEU that a split needs and that is not installed, such as `sacrebleu[ja]`."""
    module = _MECAB.get(tokenization)
    absent = module is not None and importlib.util.find_spec(module) is None
    return f"sacrebleu[{tokenization[:2]}]" if absent else None


def _by_letters(references: Sequence[str]) -> Tokenization:
    letters = [character for text in references for character in text if character.isalpha()]
    kana = sum("\u3040" <= c <= "\u30ff" for c in letters)
    hangul = sum("\uac00" <= c <= "\ud7a3" for c in letters)
    han = sum("\u4e00" <= c <= "\u9fff" for c in letters)
    if 2 * (kana + han) > len(letters):
        return "ja-mecab" if 20 * kana > len(letters) else "zh"
    return "ko-mecab" if 2 * hangul > len(letters) else "13a"
