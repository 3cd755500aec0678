"""What is said of a mistake, and of a run that has none."""

from __future__ import annotations

import re

READY = "ready to train"
"""What a run ends with that is let go on until it would compile (tests/mistakes/conftest.py)."""


def words(message: str, *expected: str) -> None:
    """Each of these stands in the message; of one that begins with `re:`, the pattern."""
    for text in expected:
        found = re.search(text[3:], message) if text.startswith("re:") else text in message
        assert found, f"{text!r} is not in: {message}"
