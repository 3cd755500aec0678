"""Rows of tagged words: tokens with a tag each, or a text with the character spans of its entities."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.errors import UserError
from jaxlm.metrics.entities import Entity
from jaxlm.tasks.tag_schemes import Scheme, write_tags

# A run of letters and digits, or any other character that is no white space; Chinese and Japanese characters stand
# alone, since their words are not parted.
_CJK = "\u2e80-\u2fdf\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


@dataclass(frozen=True)
class Words:
    """The words of a row.

    Attributes:
      text: the words joined by a space, or the text that they stand in.
      spans: first character of each word and the one behind its last.
      split: the row gave the words; otherwise they were found in a text.
    """

    text: str
    spans: tuple[tuple[int, int], ...]
    split: bool

    def __len__(self) -> int:
        return len(self.spans)


def words_of_tokens(value: Any) -> Words:
    """Reads a cell of tokens: a list of strings, or a string of tokens between white space.

    Raises:
      UserError: something else, or no token.
    """
    tokens = value.split() if isinstance(value, str) else value
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError("expected a list of tokens")
    if not tokens:
        raise UserError("expected at least one token")
    spans, place = [], 0
    for token in tokens:
        spans.append((place, place + len(token)))
        place += len(token) + 1
    return Words(" ".join(tokens), tuple(spans), True)


def words_of_text(value: Any) -> Words:
    """Finds the words of a text.

    Raises:
      UserError: no string.
    """
    if not isinstance(value, str):
        raise UserError("expected a text")
    return Words(value, tuple(match.span() for match in _WORDS.finditer(value)), False)


def tags_of_cell(value: Any, words: Words) -> list[str]:
    """Reads a cell of tags, one to a word.

    Raises:
      UserError: no list of strings, or one of another length.
    """
    tags = value.split() if isinstance(value, str) else value
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError("expected a list of tags")
    if len(tags) != len(words):
        raise UserError(f"{len(tags)} tags for {len(words)} tokens; expected one for each")
    return tags


def entities_of_cell(value: Any, words: Words) -> tuple[list[Entity], int]:
    """Reads a cell of character spans: a list of {"start", "end", "label"}, `end` exclusive.

    Returns:
      The entities over words, and how many spans begin or end inside a word and were widened to its ends.
    Raises:
      UserError: spans that overlap, are empty, lie outside the text or hold no word.
    """
    if not isinstance(value, list):
        raise UserError('expected a list of entities such as {"start": 0, "end": 5, "label": "PER"}')
    found: list[Entity] = []
    widened, last = 0, -1
    for span in sorted((_span(entity, words) for entity in value), key=lambda span: span[0]):
        start, end, label = span
        if start < last:
            raise UserError(f"entities overlap at character {start}; expected each character in one at most")
        last = end
        inside = [i for i, (a, b) in enumerate(words.spans) if a < end and b > start]
        if not inside:
            raise UserError(f"the entity at characters {start} to {end} holds no word")
        first, behind = inside[0], inside[-1] + 1
        if found and found[-1].end > first:
            raise UserError(f"entities share the word at character {words.spans[first][0]}; expected one to a word")
        stripped = words.text[start:end]
        begin, stop = start + len(stripped) - len(stripped.lstrip()), end - len(stripped) + len(stripped.rstrip())
        widened += (words.spans[first][0], words.spans[behind - 1][1]) != (begin, stop)
        found.append(Entity(label, first, behind))
    return found, widened


def _span(entity: Any, words: Words) -> tuple[int, int, str]:
    if not isinstance(entity, Mapping) or not {"start", "end", "label"} <= set(entity):
        raise UserError(f"expected an entity such as {{'start': 0, 'end': 5, 'label': 'PER'}}, found {entity!r:.80}")
    start, end, label = entity["start"], entity["end"], entity["label"]
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label:
        raise UserError(f"expected whole numbers and a name, found {entity!r:.80}")
    if not 0 <= start < end <= len(words.text):
        raise UserError(
            f"the entity at characters {start} to {end} does not lie in the text of {len(words.text)} characters"
        )
    return start, end, label


def written_entities(entities: Sequence[Entity], words: Words) -> list[dict[str, Any]]:
    """Returns entities as predictions have them, with their characters."""
    written = []
    for entity in entities:
        start, end = words.spans[entity.start][0], words.spans[entity.end - 1][1]
        places = {"token_start": entity.start, "token_end": entity.end} if words.split else {}
        written.append({"label": entity.label, "start": start, "end": end, "text": words.text[start:end], **places})
    return written


def tags_of_entities(entities: Sequence[Entity], words: Words, scheme: Scheme) -> list[str]:
    """The tag of each word."""
    return write_tags(entities, len(words), scheme)
