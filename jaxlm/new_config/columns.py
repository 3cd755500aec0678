"""What the columns of rows hold, and the names that they have."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

LABELS = (
    "label", "labels", "class", "category", "sentiment", "topic", "intent", "target", "score", "rating", "stars",
    "gold", "similarity", "tag", "tags", "genre", "genres", "topics", "emotion", "emotions", "y",
    "annotation", "gold_label",
)  # fmt: skip
TEXTS = ("text", "sentence", "review", "message", "comment", "content", "body", "tweet", "question", "title", "input")
PAIRS = (
    ("sentence1", "sentence2"), ("text1", "text2"), ("premise", "hypothesis"), ("question1", "question2"),
    ("question", "answer"), ("question", "sentence"), ("query", "document"), ("query", "passage"), ("text_a", "text_b"),
    ("anchor", "positive"), ("query", "positive"),
)  # fmt: skip
WRITTEN = (
    ("document", "summary"), ("article", "summary"), ("article", "highlights"), ("text", "summary"),
    ("dialogue", "summary"), ("source", "summary"), ("text", "title"), ("article", "headline"), ("text", "headline"),
)  # fmt: skip
LANGUAGES = (
    "en", "de", "fr", "es", "it", "zh", "ja", "ko", "ru", "pt", "nl", "pl", "tr", "ar", "cs", "ro", "sv", "fi", "da",
)  # fmt: skip
_IDS = ("id", "idx", "index", "uid", "guid", "uuid", "qid", "row")
NAMES = {*LABELS, *TEXTS, *_IDS, *LANGUAGES, *(name for pair in (*PAIRS, *WRITTEN) for name in pair), "tokens"}
"""Names that headers have."""
_CODE = re.compile(
    r"[\d\W_TZ]+|\S+@\S+\.\w+|(https?://|www\.)\S+|[0-9a-fA-F]{4,}(-[0-9a-fA-F]{4,})+"
    r"|(\w{2,10}\.?,? )?(\d{1,2}\.? \w{3,9}\.?|\w{3,9}\.? \d{1,2}),? \d{4}\b[\d\W]*\w{0,4}\W?"
)
"""Dates, times, numbers with signs, addresses of mail and of the web, ids."""


@dataclass(frozen=True)
class Column:
    """What a column holds: its values that are there, and their form."""

    name: str
    values: list[Any]

    @property
    def is_text(self) -> bool:
        return bool(self.values) and all(isinstance(value, str) for value in self.values) and not self.is_number

    @property
    def is_code(self) -> bool:
        """Whether nearly all of its texts are dates, numbers with signs, addresses or ids, which nobody reads."""
        texts = [value.strip() for value in self.values[:1000] if isinstance(value, str)]
        return bool(texts) and sum(_CODE.fullmatch(text) is not None for text in texts) >= 0.9 * len(texts)

    @property
    def is_number(self) -> bool:
        return bool(self.values) and all(number(value) is not None for value in self.values)

    @property
    def is_list(self) -> bool:
        return bool(self.values) and all(isinstance(value, list) for value in self.values)

    @property
    def words(self) -> float:
        """Mean number of words of its texts; a Chinese or Japanese character counts as one."""
        texts = [_joined(value) for value in self.values[:1000] if isinstance(value, str | list)]
        return sum(map(count_words, texts)) / max(1, len(texts))

    @property
    def distinct(self) -> int:
        return len({str(value) for value in self.values})

    @property
    def repeats(self) -> bool:
        """Whether its values come again and again, as labels do."""
        return 2 <= self.distinct <= max(2, len(self.values) // 4)

    @property
    def is_id(self) -> bool:
        return self.name.lower() in _IDS or self.name == ""

    @property
    def rank(self) -> int:
        """The place of its name among those of labels; behind them, if it is none."""
        return LABELS.index(self.name.lower()) if self.name.lower() in LABELS else len(LABELS)


def _joined(value: str | list[Any]) -> str:
    return value if isinstance(value, str) else " ".join(map(str, value))


def number(value: Any) -> float | None:
    """The finite number in a cell, or None."""
    if isinstance(value, bool) or value is None or isinstance(value, list | dict):
        return None
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def count_words(text: str) -> int:
    """The words of a text; each Chinese or Japanese character is one."""
    return len(re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+", text))
