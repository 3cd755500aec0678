"""Rows of tagged words: tokens with a tag each, or a text with the character spans of its entities."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxlm.errors import UserError
from jaxlm.metrics.entities import Entity
from jaxlm.tasks.tag_schemes import Scheme, write_tags

Span = tuple[int, int]
"""First character, and the one behind the last."""
_EXAMPLE = '{"start": 0, "end": 5, "label": "PER"}'


@dataclass(frozen=True)
class Words:
    """The words of a row.

    Attributes:
      text: the words joined by a space, or the text that they stand in.
      spans: the characters of each word.
      split: the row gave the words; otherwise they were found in a text.
      parts: of words found in a text, the smaller words that tokens join.
    """

    text: str
    spans: tuple[Span, ...]
    split: bool
    parts: tuple[Span, ...] = ()

    def __len__(self) -> int:
        return len(self.spans)


def words_of_tokens(value: Any) -> Words:
    """Reads a cell of tokens: a list of strings, or a string of tokens between white space.

    Raises:
      UserError: something else, or no token.
    """
    tokens = value.split() if isinstance(value, str) else value
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError(f"expected a list of tokens, found {value!r:.60}")
    if not tokens:
        raise UserError("expected at least one token")
    spans, place = [], 0
    for token in tokens:
        spans.append((place, place + len(token)))
        place += len(token) + 1
    return Words(" ".join(tokens), tuple(spans), True)


def check_sentences(cells: Sequence[Any], name: str) -> None:
    """Refuses a file of a word to a line that was read as a table, each of whose rows is then a single word.

    Args:
      cells: the cells of tokens of the training rows.
      name: of the file, for the message.
    Raises:
      UserError: each cell is a string of one word; lists of one word are taken as they are.
    """
    if len(cells) > 1 and all(isinstance(cell, str) and len(cell.split()) == 1 for cell in cells):
        raise UserError(
            f"{name}: each of its {len(cells)} rows has a single word; expected sentences. If the file has a word to a "
            "line and blank lines between sentences, set data.train.format=conll (and of the other splits)"
        )


def tags_of_cell(value: Any, words: Words, names: Sequence[str] | None = None) -> list[str]:
    """Reads a cell of tags, one to a word.

    Args:
      names: of tags that are numbers, from 0.
    Raises:
      UserError: no list of strings, one of another length, or a blank tag; numbers without names.
    """
    tags = value.split() if isinstance(value, str) else value
    numbers = isinstance(tags, list) and bool(tags) and all(type(tag) is int for tag in tags)
    if numbers and names is not None:
        tags = _named([int(tag) for tag in tags], names)
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        advice = "; numbers have names where task.labels gives these, in order from 0" if numbers else ""
        raise UserError(f"expected a list of tags, words such as 'B-PER', found {value!r:.60}{advice}")
    if len(tags) != len(words):
        raise UserError(f"{len(tags)} tags for {len(words)} tokens; expected one for each")
    if (blank := next((i for i, tag in enumerate(tags) if not tag.strip()), None)) is not None:
        raise UserError(f"the tag of token {blank + 1} is blank; expected one, O outside of entities")
    return tags


def _named(tags: Sequence[int], names: Sequence[str]) -> list[str]:
    if not all(0 <= tag < len(names) for tag in tags):
        raise UserError(f"found tags from {min(tags)} to {max(tags)}; task.labels names 0 to {len(names) - 1}")
    return [names[tag] for tag in tags]


class EntityCell(NamedTuple):
    """The entities of a text, over its words.

    Attributes:
      widened: spans that begin or end inside a word or a token, and were widened to its ends.
      sharing: entities that share a token with the one before, and were left out or begin behind it.
    """

    entities: list[Entity]
    widened: int
    sharing: int


def entities_of_cell(value: Any, words: Words) -> EntityCell:
    """Reads a cell of character spans: a list of {"start", "end", "label"}, or of [start, end, label] as Doccano and
    spaCy write them; `end` exclusive.

    Raises:
      UserError: spans that overlap, are empty, lie outside the text, hold no word or share one.
    """
    if not isinstance(value, list):
        raise UserError(f"expected a list of entities such as {_EXAMPLE}, found {value!r:.60}")
    found: list[Entity] = []
    widened, sharing, last, last_part = 0, 0, -1, 0
    for start, end, label in sorted((_span(entity, words) for entity in value), key=lambda span: span[0]):
        if start < last:
            raise UserError(f"entities overlap at character {start}; expected each character in one at most")
        last = end
        part, behind_part = _inside(words.parts, start, end)
        if part == behind_part:
            raise UserError(f"the entity at characters {start} to {end} holds no word")
        if part < last_part:
            raise UserError(f"entities share the word at character {words.parts[part][0]}; expected one to a word")
        last_part = behind_part
        first, behind = _inside(words.spans, start, end)
        if found and found[-1].end > first:
            sharing, first = sharing + 1, found[-1].end
            if first >= behind:
                continue
        solid = words.text[start:end]
        begin, stop = start + len(solid) - len(solid.lstrip()), end - len(solid) + len(solid.rstrip())
        widened += words.spans[first][0] < begin or words.spans[behind - 1][1] > stop
        found.append(Entity(label, first, behind))
    return EntityCell(found, widened, sharing)


def _inside(spans: Sequence[Span], start: int, end: int) -> tuple[int, int]:
    """The spans that have characters from `start` to `end`: the first, and the one behind the last."""
    first = bisect_right(spans, start, key=lambda span: span[1])
    return first, max(first, bisect_left(spans, end, key=lambda span: span[0]))


def named_entity(entity: Any) -> Any:
    """Returns an entity as an object: of [start, end, label] {"start", "end", "label"}; others as they are."""
    if isinstance(entity, list | tuple) and len(entity) == 3:
        return dict(zip(("start", "end", "label"), entity, strict=True))
    return entity


def _span(entity: Any, words: Words) -> tuple[int, int, str]:
    entity = named_entity(entity)
    if not isinstance(entity, Mapping) or not {"start", "end", "label"} <= set(entity):
        raise UserError(f"expected an entity such as {_EXAMPLE}, found {entity!r:.80}")
    start, end, label = entity["start"], entity["end"], entity["label"]
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label.strip():
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
