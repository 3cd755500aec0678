"""Questions of a SQuAD file, version 1 or 2, as rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from jaxlm.data.sources.text_files import BadRow, Record
from jaxlm.errors import UserError

_FORM = 'expected {"data": [{"paragraphs": [{"context": "...", "qas": [{"id", "question", "answers"}]}]}]}'
_SHAPE = re.compile(r'"data"\s*:\s*\[.*"paragraphs"\s*:\s*\[', re.DOTALL)
HEAD = 1 << 16
"""Bytes at the beginning of a file that tell whether it is one."""


def is_squad(beginning: str) -> bool:
    """Tells whether a JSON file is of SQuAD's form, from its first characters."""
    return beginning.lstrip().startswith("{") and bool(_SHAPE.search(beginning))


def read_squad(text: str, name: str) -> Iterator[Record]:
    """Yields a row for each question, numbered in their order.

    A row has the question's own keys (`id`, `question`, `answers`, a list of {"text", "answer_start"}), `context`, the
    article's `title` where it has one, and `is_impossible`: what the question says, else whether the file is of version
    2 and the question has no answer.

    Raises:
      UserError: no JSON, or no list of articles.
    """
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{name}, line {error.lineno}: not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: not readable JSON: {error}") from None
    articles = content.get("data") if isinstance(content, dict) else None
    if not isinstance(articles, list):
        raise UserError(f"{name}: not in SQuAD's form; {_FORM}")
    second = str(content.get("version", "")).lower().removeprefix("v").startswith("2")
    number = 0
    for article in articles:
        for question in _questions(article):
            number += 1
            yield number, question if isinstance(question, BadRow) else _row(question, second)


def _row(question: dict[str, Any], second: bool) -> dict[str, Any] | BadRow:
    if not isinstance(question.get("is_impossible"), bool):
        question["is_impossible"] = second and not question.get("answers")
    try:
        json.dumps(question, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return BadRow("a \\ud... escape stands without the other half of its surrogate pair: no valid text")
    return question


def _questions(article: Any) -> Iterator[dict[str, Any] | BadRow]:
    paragraphs = article.get("paragraphs") if isinstance(article, Mapping) else None
    if not isinstance(paragraphs, list):
        yield BadRow(f"an article without paragraphs; {_FORM}")
        return
    named = {"title": article["title"]} if "title" in article else {}
    for paragraph in paragraphs:
        questions = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        if not isinstance(questions, list):
            yield BadRow(f"a paragraph without qas; {_FORM}")
            continue
        for question in questions:
            if isinstance(question, Mapping):
                ours = {key: question.get(key) for key in ("id", "question")}
                yield {**named, **ours, "context": paragraph.get("context"), **question}
            else:
                yield BadRow(f"a question that is no object; {_FORM}")
