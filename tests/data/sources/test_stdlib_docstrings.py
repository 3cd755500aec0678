"""The built-in source: what stands in it, and that nothing leaks from one split into another."""

from __future__ import annotations

import ast
import inspect
import sysconfig
from pathlib import Path

import pytest
from helpers.few_docstrings import MODULES, few_docstrings

from jaxlm.data.config import SourceConfig
from jaxlm.data.sources import stdlib_docstrings
from jaxlm.data.sources.sources import load
from jaxlm.data.sources.stdlib_docstrings import SPLITS, TOPICS, load_docstrings
from jaxlm.errors import UserError


@pytest.fixture(scope="module")
def splits():
    with few_docstrings():
        return {split: load_docstrings(split).rows for split in SPLITS}


def test_sizes_and_topics(splits):
    sizes = {split: len(rows) for split, rows in splits.items()}
    total = sum(sizes.values())
    assert 1200 < total < 3000
    assert sizes["train"] / total == pytest.approx(0.8, abs=0.05)
    assert sizes["validation"] / total == pytest.approx(0.1, abs=0.05)
    for rows in splits.values():
        assert {row["label"] for row in rows} == set(MODULES) == set(TOPICS)
    modules = " ".join(TOPICS.values()).split()
    assert set(" ".join(MODULES.values()).split()) <= set(modules)
    assert len(modules) == len(set(modules))


def test_rows_are_docstrings_of_their_module(splits):
    by_module = {row["module"]: row for row in splits["train"]}
    for name, topic in {"json.decoder": "formats", "threading": "concurrency", "email.message": "mail"}.items():
        row = by_module[name]
        path = Path(sysconfig.get_path("stdlib"), *name.split(".")).with_suffix(".py")
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = {ast.get_docstring(node) for node in nodes if isinstance(node, documented)}
        assert row["text"] in docs
        assert row["label"] == topic
    assert inspect.getdoc(ast.literal_eval) in {row["text"] for rows in splits.values() for row in rows}


def test_no_code_blocks_no_tests_no_stubs(splits):
    for row in (row for rows in splits.values() for row in rows):
        assert not any(line.lstrip().startswith(">>>") for line in row["text"].splitlines())
        assert len(row["text"].split()) >= stdlib_docstrings.MIN_WORDS
        assert row["text"] == row["text"].strip()
        assert not {"test", "tests", "idle_test"} & set(row["module"].split("."))


def test_splits_share_no_near_copy(splits):
    def words(text):
        return "".join(c.lower() if c.isalnum() or c == "_" else " " for c in text).split()

    def shingles(text):
        own = words(text)
        return {" ".join(own[i : i + 5]) for i in range(len(own) - 4)} or {" ".join(own)}

    held_out = [(row, shingles(row["text"])) for split in SPLITS[1:] for row in splits[split]]
    index: dict[str, list[int]] = {}
    for i, (_, own) in enumerate(held_out):
        for shingle in own:
            index.setdefault(shingle, []).append(i)
    for row in splits["train"]:
        own = shingles(row["text"])
        lookahead: dict[int, int] = {}
        for shingle in own:
            for i in index.get(shingle, ()):
                lookahead[i] = lookahead.get(i, 0) + 1
        for i, count in lookahead.items():
            other, theirs = held_out[i]
            assert count / min(len(own), len(theirs)) < 0.5, (row["text"], other["text"])
    all_texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(all_texts) == len(set(all_texts))


def test_texts_of_two_topics_are_left_out_and_repeats_dropped(monkeypatch, tmp_path):
    (tmp_path / "json").mkdir()
    json = "Words for json alone, and a block."
    same = '"""Return a shallow copy of the whole thing."""'
    (tmp_path / "csv.py").write_text(f"def f():\n    {same}\nif 1:\n    def g():\n        {same}\n")
    (tmp_path / "json/a.py").write_text(
        'def f():\n    """Words for json alone, and a block.\n\n    >>> 1\n    1\n    """\n'
    )
    (tmp_path / "json/b.py").write_text(
        'try:\n    class A:\n        """Words for json alone, and a block."""\nfinally: 0\n'
    )
    (tmp_path / "threading.py").write_text(f"class A:\n    {same}\n    def f(self):\n        'Too short to tell.'\n")
    (tmp_path / "nosuchmodule.py").write_text('"""A module that stands in no topic at all."""')
    (tmp_path / "wave.py").write_text("def broken(:")
    platform = "Only on one platform is this defined."
    (tmp_path / "zipfile.py").write_text(f'if 1:\n    0\nelse:\n    async def f():\n        """{platform}"""\n')
    monkeypatch.setattr(stdlib_docstrings, "_MIN_ROWS", 1)
    rows = [row for row, _ in stdlib_docstrings._split_rows(tmp_path)]
    assert rows == [
        {"text": json, "label": "formats", "module": "json.a"},
        {"text": platform, "label": "formats", "module": "zipfile"},
    ]


def test_a_python_without_sources_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"only 0 docstrings found under .*without the sources"):
        load_docstrings("train")


def test_as_a_source(splits):
    source = SourceConfig(builtin="stdlib_docstrings", limit=5, rename={"text": "body"})
    with few_docstrings():
        table = load(source, key="data.validation", split="validation")
    assert [row["body"] for row in table.rows] == [row["text"] for row in splits["validation"][:5]]
    assert table.columns == ("body", "label", "module") and table.where(1) == "stdlib_docstrings:validation, row 2"
    with pytest.raises(UserError, match="no split 'dev'; its splits are: train, validation, test"):
        load(SourceConfig(builtin="stdlib_docstrings", split="dev"), key="data.validation", split="validation")
