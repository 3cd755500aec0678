"""The docstrings of installed packages: what is found in a file, and that no copy is in two splits."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from jaxlm.data.config import SourceConfig
from jaxlm.data.corpus import documents
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.sources import docstring_scan, installed_docstrings, stdlib_docstrings
from jaxlm.data.sources.installed_docstrings import InstalledDocstrings

# Docstrings.


def test_the_scan_finds_what_a_parse_finds():
    folder = Path(sysconfig.get_path("stdlib"))
    paths = sorted(folder.glob("*.py"))[::2] + sorted(folder.glob("email/*.py"))
    assert len(paths) > 80
    total = 0
    for path in paths:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        expected = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
        expected = sorted(text for text in expected if text is not None)
        assert sorted(docstring_scan.read_docstrings(path)) == expected, path
        total += len(expected)
    assert total > 1000


def test_the_scan_is_not_led_astray(tmp_path):
    def scan(content: str | bytes) -> list[str]:
        (tmp_path / "a.py").write_bytes(content.encode() if isinstance(content, str) else content)
        return docstring_scan.read_docstrings(tmp_path / "a.py")

    source = '''#!/usr/bin/env python
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
def last(): pass'''
    found = scan(source)
    assert found == ["Module \\d.", "Class.", 'Method\nwith "quotes" and """.', "Inner."]
    assert scan(b'"""\xff"""') == []
    for broken in ("def f(" + "(" * 1000, 'class A:\n    """never closed', "def f():"):
        assert scan(broken) == []


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A Python of a few files, of which the standard library's docstrings have a test text."""
    held = "The test text that nobody else may learn, word by word."
    table = stdlib_docstrings.Table("t", ("text",), ({"text": held},), (1,))
    monkeypatch.setattr(stdlib_docstrings, "load_docstrings", lambda split: table)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))

    def put(name, *texts):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"def f{i}():\n    {text!r}\n" for i, text in enumerate(texts)), encoding="utf-8")

    for i in range(300):
        put(f"purelib/package{i % 7}/module{i}.py", f"Text number {i} of a package.", f"Short {i}.", "A copy.")
    put("stdlib/os.py", "Of the standard library.", held, f"{held[:-1]}, more or less.", held.upper().replace(",", ""))
    put("purelib/package/tests/test_it.py", "A test's own words.")
    put("stdlib/site-packages/other.py", "Not of the standard library.")
    return put


def test_installed_docstrings_are_split_and_hold_no_copies(installed):
    train, validation = (list(InstalledDocstrings(split)) for split in installed_docstrings.SPLITS)
    texts = train + validation
    assert len(texts) == len(set(texts)) == 602
    assert {"Of the standard library.", "A copy.", "Short 7.", "Text number 299 of a package."} <= set(texts)
    assert not [text for text in texts if "nobody" in text.lower() or "test's own" in text or "Not of" in text]
    assert 0.02 < len(validation) / len(texts) < 0.09
    assert list(InstalledDocstrings("train", 50)) == train[:50]
    assert len({text for text in train[:50] if text.startswith("Text")}) > 10  # from everywhere, not file by file
    source = SourceConfig(builtin="installed_docstrings", limit=10)
    pieces = Documents(source, key="data.train", split="train").read()
    assert [piece.text for piece in pieces] == train[:10]


def test_near_copies_are_those_of_the_labelled_set():
    """The same rule as `near_copies`, looked up the other way round."""
    rows = stdlib_docstrings.load_docstrings("validation").rows[:20]
    texts = [row["text"] for row in rows]
    changed = [" ".join(text.split()[: max(3, len(text.split()) * 3 // 5)]) for text in texts]
    copies = installed_docstrings._Copies(texts)
    others = [row["text"] for row in stdlib_docstrings.load_docstrings("train").rows[:40]]
    for text in [*texts, *changed, *others]:
        expected = any(len(set(stdlib_docstrings.near_copies([text, other]))) == 1 for other in texts)
        assert (text in copies) == expected, text


def test_the_content_of_installed_docstrings_follows_the_files(installed):
    contents = Contents()
    before = InstalledDocstrings("train").content(contents)
    assert InstalledDocstrings("train").content(Contents()) == before
    installed("purelib/new.py", "One more.")
    assert InstalledDocstrings("train").content(contents) != before


def test_docstrings_of_this_machine_come_with_any_hash_seed():
    code = (
        "from jaxlm.data.sources.installed_docstrings import InstalledDocstrings; import hashlib;"
        "print(hashlib.sha256(repr(list(InstalledDocstrings('validation', 100))).encode()).hexdigest())"
    )
    root = str(Path(inspect.getfile(documents)).parents[2])
    out = []
    for seed in ("1", "2"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": root}
        command = [sys.executable, "-c", code]
        out.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert out[0] == out[1]
