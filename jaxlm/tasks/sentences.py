"""Sentences of a text, for simple systems that take some of them."""

from __future__ import annotations

import re
from typing import Any

_SENTENCE = re.compile(r".+?(?:[.!?][\"'”’)\]]*(?=\s)|[。！？][”’」』）]*|\n|$)", re.DOTALL)
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|et al|Fig|Eq|Dr|Mr|Mrs|Ms|Prof|No|approx)|\b[A-Z])\.$")


def sentences(cell: Any) -> list[str]:
    """Returns the sentences of a text, or those of a list as it has them."""
    if isinstance(cell, list | tuple):
        return [text for part in cell if (text := str(part).strip())]
    found: list[str] = []
    joined = ""
    for match in _SENTENCE.finditer(str(cell)):
        joined += match[0]
        if joined.strip() and not _ABBREVIATION.search(joined.rstrip()):
            found.append(joined.strip())
            joined = ""
    return [*found, joined.strip()] if joined.strip() else found
