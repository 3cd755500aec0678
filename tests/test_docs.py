"""What README.md and docs/ name exists: links, paths, config keys, commands and their options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.corpora import byte_tokenizer
from helpers.paths import REPOSITORY

from jaxlm.config.loading import load_config
from jaxlm.config.reference import walk
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.options import make_parser
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Context

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
GUIDES = (
    "classification",
    "tagging",
    "question_answering",
    "embeddings",
    "multiple_choice",
    "translation",
    "summarization",
)
KEYS = {key for key, _ in walk()} | {"mesh.devices"}  # the latter is an option of dry runs (docs/design.md)
COMMANDS = "finetune|pretrain|evaluate|predict|convert|train_tokenizer"
SECTIONS = "model|task|data|optimizer|train|mesh|checkpoint|logging"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> Iterator[str]:
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.search(rf"(?:python scripts/|jaxlm )((?:{COMMANDS})\b.*)", line):
                yield re.split(r"\s+#\s|'$", found[1])[0]


def headings(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page):
    text = page.read_text(encoding="utf-8")
    missing = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, heading = target.partition("#")
        file = page.parent / path if path else page
        if not target.startswith("http") and not (file.exists() and (not heading or heading in headings(file))):
            missing.append(target)
    for path in re.findall(r"(?<![\w/.*-])((?:jaxlm|tests|scripts|configs|docs|examples)/[\w./*-]*\w)", text):
        if not re.search("[A-Z]{4}|/s$", path) and not list(REPOSITORY.glob(path)):
            missing.append(path)
    for key in re.findall(rf"`((?:{SECTIONS})\.[a-z_]+(?:\.[a-z_]+)*)\b(?!\()", text):
        if key in KEYS or re.search(r"\.(jsonl|csv|tsv)", key):
            continue
        if not list((REPOSITORY / "jaxlm").glob(f"{key.split('.')[0]}/{key.split('.')[1]}*")):
            missing.append(key)
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for command in commands(page):
        name, *words = shlex.split(re.split(r" \| | && ", command)[0])
        options = make_parser().parse_args([name.removesuffix(".py").replace("_", "-"), *words])
        if "config" in options and re.fullmatch(r"configs/[a-z_0-9/]+\.yaml", options.config):
            load_config(Path(options.config), [o for o in options.overrides if "=" in o and "devices" not in o])


@pytest.mark.parametrize("guide", GUIDES)
def test_configs_of_the_guides_are_whole(guide, tmp_path):
    page = REPOSITORY / "docs" / f"{guide}.md"
    path = tmp_path / "config.yaml"
    path.write_text(blocks(page, "yaml")[0], encoding="utf-8")
    config = load_config(path)
    assert config.data.validation is not None
    task = TASKS[config.task.kind]
    rows = tuple(json.loads(line) for block in blocks(page, "json") for line in block.splitlines())
    table = Table("guide", tuple(rows[0]) if rows else (), rows, tuple(range(len(rows))))
    made = task.create(config.task, Context(config.data, byte_tokenizer()), TableSources({"train": table}, {}, ()))
    assert rows and len(made.examples(table, labelled=True, key="data.train").examples) > 0
    assert {name.split()[0] for name in commands(page)} >= {"finetune.py", "predict.py"}
