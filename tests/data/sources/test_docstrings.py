"""Docstrings of a file: which strings are docstrings, in which order, and files that have none."""

from __future__ import annotations

import pytest

from jaxlm.data.sources.docstrings import prose, read_docstrings

SOURCE = '''#!/usr/bin/env python
# "def no(): 'comment'"
r"""Module \\d."""
x = "def f(): 'no'"; y = """
def g():
    'inside a string'
"""
class A(B["x"], metaclass={":": 1}[":"]):  # a class: with a comment
    # another

    \'\'\'Class.\'\'\'
    def f(self, a: dict[str, int] = {"a": 1}, *, b=lambda: ")") -> "A[:]":
        """Method
            with "quotes" and \\"\\"\\".
        """
        async def inner(): "Inner."; return 1
    def no(self): return "x"
    def formatted(self):
        f"""{self} is no docstring"""
    def expression(self):
        "nor" % ()
    def bytes(self):
        b"nor this"
    def half(self):
        "\\ud800 is no text"
    def two(self):
        "Of two " 'strings.'
try:
    def body(): "Try."
except E:
    def handler(): "Except."
else:
    def orelse(): "Else."
finally:
    def final(): "Finally."
for i in x:
    with y:
        while 1:
            def loop(): "Loop."
match x:
    case 1:
        def case(): "Case."
def last(): pass'''


def test_docstrings_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    first = ["Module \\d.", "Class.", 'Method\nwith "quotes" and """.', "Inner.", "Of two strings."]
    blocks = ["Try.", "Except.", "Else.", "Finally.", "Loop.", "Case."]
    assert list(read_docstrings(path)) == first + blocks
    path.write_bytes(b"# coding: latin-1\r\n'''Caf\xe9,\r\n    twice.'''\r\n")
    assert list(read_docstrings(path)) == ["Café,\ntwice."]


@pytest.mark.parametrize(
    "content",
    [b'"""\xff"""', b"'x'\0", b"def f(" + b"(" * 1000, b'class A:\n    """never closed', b"x = " + b"-" * 99999],
)
def test_files_that_are_no_python_have_none(tmp_path, content):
    (tmp_path / "a.py").write_bytes(content)
    assert list(read_docstrings(tmp_path / "a.py")) == []
    assert list(read_docstrings(tmp_path / "missing.py")) == []


def test_doctests_are_no_prose():
    assert prose("One.\n\n>>> 1 +\\\n... 1\n2\n\nTwo.\n    >>> 3\n    3") == "One.\n\nTwo."
