"""Rows of JSON: an object to a line, or one list of objects."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from jaxlm.data.sources.text_files import BadRow, Record
from jaxlm.errors import UserError


def read_json(lines: Iterable[str | BadRow], name: str) -> Iterator[Record]:
    """Yields the rows of a file of JSON: a list of objects if its first line begins one, else an object to a line.

    Args:
      lines: with their line feeds; only of a list is more than one read at a time.
      name: what messages call the file.
    Raises:
      UserError: a list that is broken.
    """
    lines, head = iter(lines), list[str | BadRow]()
    for line in lines:
        head.append(line)
        if isinstance(line, BadRow) or line.strip():
            break
    if head and isinstance(head[-1], str) and head[-1].lstrip().startswith("["):
        head = [*head, *lines]
        if not _starts_with_whole_list(head):
            for number, line in enumerate(head, start=1):
                if isinstance(line, BadRow):
                    raise UserError(f"{name}: the JSON list is broken in line {number}: {line.problem}")
            yield from read_json_list("".join(map(str, head)), name)
            return
    yield from read_jsonl(chain(head, lines))


def _starts_with_whole_list(lines: Sequence[str | BadRow]) -> bool:
    """Whether a list ends in the first line with text and other lines follow: then each line is meant as a row."""
    first, *rest = (line for line in lines if isinstance(line, BadRow) or line.strip())
    try:
        json.loads(str(first))
    except (ValueError, RecursionError):
        return False
    return bool(rest)


def read_jsonl(lines: Iterable[str | BadRow]) -> Iterator[Record]:
    """Yields the JSON object of each line; skips blank lines."""
    for number, line in enumerate(lines, start=1):
        if isinstance(line, BadRow):
            yield number, line
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            yield number, BadRow(f"not valid JSON: {error.msg}, column {error.colno}{_list_hint(line)}")
        except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of nested lists
            yield number, BadRow(f"not readable JSON: {error}")
        else:
            yield number, _checked(value, line)


def read_json_list(text: str, name: str) -> Iterator[Record]:
    """Yields the objects of a file that is one JSON list, each with the line at which it starts.

    Raises:
      UserError: the text is no list, or no JSON from some place on.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    place, line, seen = _space(text, text.index("[") + 1), 1, 0
    while text[place : place + 1] != "]":
        line, seen = line + text.count("\n", seen, place), place
        try:
            value, end = decoder.raw_decode(text, place)
            row = _checked(value, text[place:end])
        except _RepeatedKey as error:
            row, end = BadRow(f"not readable JSON: {error}"), json.JSONDecoder().raw_decode(text, place)[1]
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}: not valid JSON after line {line}: {error}") from None
        yield line, row
        place = _space(text, end)
        if text[place : place + 1] == ",":
            place = _space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise UserError(f"{name}: the JSON list is broken after line {line}: expected a comma or its end")
    if text[place + 1 :].strip():
        raise UserError(
            f"{name}: something follows the end of the JSON list; expected one list, or an object to a line"
        )


def _space(text: str, place: int) -> int:
    """The next place that is not white space."""
    while text[place : place + 1].isspace():
        place += 1
    return place


class _RepeatedKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which the standard library would keep the last of two equal keys."""
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice in an object")
    return made


def _list_hint(line: str) -> str:
    if not line.startswith("["):
        return ""
    return "; expected an object to a line, or one list of objects in the whole file"


def _checked(value: Any, line: str) -> dict[str, Any] | BadRow:
    if not isinstance(value, dict):
        names = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
        found = names.get(type(value), "a number")
        return BadRow(f'expected a JSON object such as {{"text": "..."}}, found {found}{_list_hint(line)}')
    if "\\ud" in line.lower():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return BadRow("a \\ud... escape stands without the other half of its surrogate pair: no valid text")
    return value
