"""ROUGE as the package rouge-score computes it (Lin, 2004), also of texts that do not part words by spaces."""

from __future__ import annotations

import importlib
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
Words = Literal["latin", "unicode"]
"""How texts are split: runs of a-z and 0-9, as rouge-score does; or runs of letters and digits of any script, where a
Chinese, Japanese or Thai character stands for itself."""
_SINGLE = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


class _UnicodeTokenizer:
    """Splits as `Words` "unicode" says; what rouge-score calls."""

    def __init__(self, stemmer: Any) -> None:
        self._stemmer = stemmer

    def tokenize(self, text: str) -> list[str]:
        words = _words(text.lower())
        if self._stemmer is None:
            return words
        return [self._stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in words]


def _words(text: str) -> list[str]:
    """The words of a text; a run of letters ends where a character that is a word by itself begins."""
    spaced = _SINGLE.sub(lambda match: f" {match[0]} ", text)
    return "".join(
        c if c.isascii() and c.isalnum() or unicodedata.category(c)[0] in "LMN" else " " for c in spaced
    ).split()


def rouge_scores(
    texts: Sequence[str], references: Sequence[Sequence[str]], words: Words = "latin", *, stemmer: bool = False
) -> dict[str, float]:
    """Returns the means of the F-measures, from 0 to 1; of several references, that of the best counts.

    Sentences of rougeLsum end at line feeds.

    Args:
      stemmer: English words are cut down to their stems (Porter, 1980).
    Raises:
      ValueError: no text, or one without a reference.
    """
    if not texts or not all(references):
        raise ValueError("expected at least one text, and a reference of each")
    scorer_module: Any = importlib.import_module("rouge_score.rouge_scorer")  # slow: it loads NLTK
    tokenizers: Any = importlib.import_module("rouge_score.tokenizers")
    tokenizer = tokenizers.DefaultTokenizer(stemmer)
    if words == "unicode":
        tokenizer = _UnicodeTokenizer(tokenizers.porter.PorterStemmer() if stemmer else None)
    scorer = scorer_module.RougeScorer(ROUGE, tokenizer=tokenizer)
    found = [scorer.score_multi(list(given), text) for text, given in zip(texts, references, strict=True)]
    return {name: sum(float(score[name].fmeasure) for score in found) / len(found) for name in ROUGE}


def words_of(references: Sequence[str]) -> Words:
    """Returns how texts like these are split: as rouge-score does where at least half of the letters are a-z."""
    letters = [character for text in references for character in text if character.isalpha()]
    return "latin" if 2 * sum(letter.isascii() for letter in letters) >= len(letters) else "unicode"
