"""For tests: the built-in labeled data set over a few modules of the standard library, which are soon parsed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from jaxlm.data.sources import stdlib_docstrings

MODULES = {
    "concurrency": "queue threading",
    "debugging": "logging pdb trace",
    "files and system": "argparse pathlib shutil",
    "formats": "json plistlib tarfile",
    "gui": "turtle",
    "language": "ast dis",
    "mail": "email",
    "numbers and dates": "calendar fractions statistics",
    "import and packaging": "importlib",
    "structures": "collections contextlib heapq",
    "text": "difflib string textwrap",
    "web and network": "http urllib",
}


@contextmanager
def few_docstrings() -> Iterator[None]:
    """Within it, `stdlib_docstrings` reads MODULES only."""
    stdlib_docstrings._split_rows.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stdlib_docstrings, "TOPICS", MODULES)
        yield
    stdlib_docstrings._split_rows.cache_clear()
