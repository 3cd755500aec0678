"""The docstrings of installed packages: their splits, and that no copy of a labeled text is among them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

from jaxlm.data.config import SourceConfig
from jaxlm.data.corpus.documents import Documents
from jaxlm.data.corpus.file_digests import Contents
from jaxlm.data.sources import installed_docstrings, stdlib_docstrings
from jaxlm.data.sources.installed_docstrings import InstalledDocstrings


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


def test_the_content_of_installed_docstrings_follows_the_files(installed):
    contents = Contents()
    before = InstalledDocstrings("train").content(contents)
    assert InstalledDocstrings("train").content(Contents()) == before
    installed("purelib/new.py", "One more.")
    assert InstalledDocstrings("train").content(contents) != before


def test_the_same_docstrings_under_every_hash_seed(tmp_path):
    """Of both built-in sources, over parts of the real standard library."""
    (tmp_path / "stdlib").mkdir()
    for name in ("json", "plistlib.py", "tarfile.py", "zipfile.py", "textwrap.py"):
        source = Path(sysconfig.get_path("stdlib"), name)
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, tmp_path / "stdlib" / name)
    code = f"""
        import sysconfig
        from jaxlm.data.sources import installed_docstrings, stdlib_docstrings
        sysconfig.get_path = lambda name: {str(tmp_path)!r} + "/" + name
        stdlib_docstrings._MIN_ROWS = 1
        print([stdlib_docstrings.load_docstrings(split).rows for split in stdlib_docstrings.SPLITS])
        print([list(installed_docstrings.InstalledDocstrings(split)) for split in installed_docstrings.SPLITS])
    """
    outputs = set()
    for seed in ("1", "2"):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=True)
        outputs.add(done.stdout)
    assert len(outputs) == 1 and len(outputs.pop()) > 10_000
