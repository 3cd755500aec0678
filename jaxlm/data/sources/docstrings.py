"""The docstrings of a Python file, and their prose."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")  # where a statement holds others, in file order


def read_docstrings(path: Path) -> Iterator[str]:
    """Yields the docstrings of a file's module, classes and functions, cleaned by `inspect.cleandoc`, in file order.

    The file is parsed, never executed. A file that is no valid Python has none, nor are there docstrings with half a
    surrogate pair.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like, in sources that are not ours
        try:
            nodes: list[ast.AST] = [ast.parse(path.read_bytes())]
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):  # templates, test data, deep nesting
            return
    while nodes:
        node = nodes.pop()
        if isinstance(node, _DOCUMENTED):
            text = ast.get_docstring(node)
            if text is not None and _is_text(text):
                yield text
        nodes.extend(reversed([inner for block in _BLOCKS for inner in getattr(node, block, ())]))


def prose(docstring: str) -> str:
    """Returns a docstring without doctest blocks, which are code: from a prompt to the next blank line."""
    kept, in_doctest = [], False
    for line in docstring.splitlines():
        in_doctest = line.lstrip().startswith(">>>") or (in_doctest and bool(line.strip()))
        if not in_doctest:
            kept.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip()


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
