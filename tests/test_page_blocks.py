"""Every fenced block of README.md and docs/ runs in a test, or says why not and is read as far as it can be.

Above a block of commands or Python stands `<!-- ci: NAME -->`, whom RUN_BY names, or `<!-- not run: WHY -->`.
YAML and JSON are read here: a config, or a part of one, by the schema. Readers of the page do not see the marks.
"""

from __future__ import annotations

import ast
import importlib
import json
import re
import tomllib
from collections import Counter

import pytest
import yaml
from helpers.pages import PAGES, Block, all_blocks, blocks_of
from helpers.paths import REPOSITORY

from jaxlm.config.loading import make_config
from jaxlm.options import make_parser
from jaxlm.sweep.space import load_space

RUN_BY = {
    "quickstart": ".ci/run",
    "tests": ".ci/run",
    "from-text": "tests/test_readme.py",
    "library": "tests/test_readme.py",
    "first-hour": "tests/test_first_hour.py",
    "first-hour-python": "tests/test_first_hour.py",
    "readme-checkpoint": "tests/test_pages_of_sst2.py",
    "readme-python": "tests/test_pages_of_sst2.py",
    "python": "tests/test_pages_of_sst2.py",
    "predicting": "tests/test_pages_of_sst2.py",
    "fine-tuning": "tests/test_pages_of_sst2.py",
    "checking-data": "tests/test_pages_of_sst2.py",
    "first-config": "tests/test_pages_of_sst2.py",
    "new-task": "tests/test_examples.py",
}
"""Who runs a block, by its mark."""
BLOCKS = all_blocks()


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def in_page(blocks: list[Block]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("block", blocks, ids=lambda block: block.place)


def test_every_block_runs_or_says_why_not():
    known = {"bash", "python", "yaml", "json", "text"}
    assert not [block.place for block in BLOCKS if block.language not in known]
    read = {"yaml", "json"}
    bare = [b.place for b in BLOCKS if b.language not in read and not b.run_as and len(b.not_run.split()) < 2]
    assert not bare, "above each: <!-- ci: NAME --> (and NAME in RUN_BY), or <!-- not run: REASON -->"


def test_what_is_marked_as_run_is_run():
    marked = {block.run_as for block in BLOCKS if block.run_as}
    assert marked == set(RUN_BY)
    for name, file in RUN_BY.items():
        assert re.search(rf"\b{re.escape(name)}\b", (REPOSITORY / file).read_text(encoding="utf-8")), name


def test_no_mark_is_lost():
    """Of a mark that stands above no block, or is misspelt, nothing else would be said."""
    for page in PAGES:
        written = re.findall(r"^ *<!--( *(?:ci|not).*)-->", page.read_text(encoding="utf-8"), re.MULTILINE)
        found = [b.run_as or b.not_run for b in blocks_of(page) if b.run_as or b.not_run]
        assert Counter(words.split(":", 1)[-1].strip() for words in written) == Counter(found), page.name


@in_page(of("yaml"))
def test_configs_are_understood(block, tmp_path):
    if block.not_run:
        assert all(isinstance(part, dict) for part in yaml.safe_load_all(block.text))
    elif any("." in key for key in yaml.safe_load(block.text)):
        (tmp_path / "space.yaml").write_text(block.text)
        assert load_space(tmp_path / "space.yaml", make_config("name: swept"))
    else:
        whole = block.text if "name:" in block.text else f"name: part\n{block.text}"
        assert make_config(whole).name


@in_page(of("json"))
def test_rows_are_json(block):
    rows = [json.loads(line) for line in block.text.splitlines()]
    assert rows and all(isinstance(row, dict) for row in rows)


@in_page(of("python"))
def test_python_names_what_there_is(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxlm"):
            module = importlib.import_module(str(node.module))
            assert not [name.name for name in node.names if not hasattr(module, name.name)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jaxlm":
            assert hasattr(importlib.import_module("jaxlm"), node.attr), node.attr


SUBCOMMANDS = next(a for a in make_parser()._actions if a.choices).choices
_CALL = re.compile(rf"(?:python scripts/|jaxlm )(?P<name>{'|'.join(SUBCOMMANDS).replace('-', '[-_]')})(?:\.py)?(?= |$)")


def test_commands_have_names_that_there_are():
    shell = "".join(block.text for block in of("bash"))
    prose = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    named = re.findall(r"(?:^|[|&] )jaxlm ([\w-]+)", shell, re.MULTILINE) + re.findall(r"`jaxlm ([a-z][\w-]*)", prose)
    assert set(named) <= set(SUBCOMMANDS)


def test_prose_names_options_that_there_are():
    """Also in a sentence: `jaxlm check --config X --html check.html`."""
    wrong = []
    for page in PAGES:
        for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            if found := _CALL.match(span):
                options = SUBCOMMANDS[found["name"].replace("_", "-")]._option_string_actions
                wrong += [
                    f"{page.name}: {span}" for name in re.findall(r"(?<=\s)--[\w-]+", span) if name not in options
                ]
    assert not wrong


def test_extras_that_are_named_are_there():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    there = set(project["project"]["optional-dependencies"])
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named = ",".join(re.findall(r"(?:jaxlm|[\"'.])\[([a-z0-9,]+)\][\"'`]", text))
        assert {name for name in named.split(",") if name} <= there, page.name
