"""What README.md and docs/ name exists: links, paths, config keys, commands and their options."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from helpers.corpora import byte_tokenizer
from helpers.pages import PAGES
from helpers.paths import REPOSITORY

from jaxlm.config.loading import load_config
from jaxlm.config.reference import walk
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.options import make_parser
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Context

GUIDES = (
    "classification",
    "tagging",
    "question_answering",
    "embeddings",
    "multiple_choice",
    "translation",
    "summarization",
    "instructions",
)
KEYS = {key for key, _ in walk()} | {"mesh.devices"}  # the latter is an option of dry runs (docs/design.md)
COMMANDS = "|".join(next(a for a in make_parser()._actions if a.choices).choices or ()).replace("-", "[-_]")
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
        name, *words = shlex.split(re.split(r" \| | && | > ", command)[0])
        options = make_parser().parse_args([name.removesuffix(".py").replace("_", "-"), *words])
        if "config" in options and re.fullmatch(r"configs/[a-z_0-9/]+\.yaml", options.config):
            load_config(Path(options.config), [o for o in options.overrides if "=" in o and "devices" not in o])


@pytest.mark.parametrize("guide", GUIDES)
def test_configs_of_the_guides_are_whole(guide, tmp_path):
    page = REPOSITORY / "docs" / "tasks" / f"{guide}.md"
    path = tmp_path / "config.yaml"
    path.write_text(blocks(page, "yaml")[0], encoding="utf-8")
    config = load_config(path)
    assert config.data.validation is not None
    task = TASKS[config.task.kind]
    rows = tuple(json.loads(line) for block in blocks(page, "json") for line in block.splitlines())
    table = Table("guide", tuple(rows[0]) if rows else (), rows, tuple(range(len(rows))))
    made = task.create(config.task, Context(config.data, byte_tokenizer()), TableSources({"train": table}, {}, ()))
    assert rows and len(made.examples(table, labelled=True, key="data.train").examples) > 0
    assert {name.split()[0] for name in commands(page)} >= {"finetune", "predict"}


SITE = runpy.run_path(str(REPOSITORY / "scripts" / "docs_site.py"))


def test_the_site_has_every_page():
    """And no other: `mkdocs build --strict` fails for a page that is not there."""
    config = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    docs = REPOSITORY / "docs"
    there = {page.relative_to(docs).as_posix() for page in PAGES if docs in page.parents} | {SITE["PAGE"]}
    assert set(SITE["pages_of"](config["nav"])) <= there
    whole = SITE["on_config"]({"nav": config["nav"], "docs_dir": str(docs)})
    assert sorted(SITE["pages_of"](whole["nav"])) == sorted(there)


def test_the_page_of_the_command_line_has_every_command_and_option():
    page = SITE["command_page"]()
    for name, command in SITE["_commands"]().items():
        part = page.split(f"## jaxlm {name}\n")[1].split("\n## ")[0]
        rows = [line.removeprefix("| `").split("`")[0] for line in part.splitlines() if line.startswith("| `")]
        asked = [action for action in command._actions if action.dest != "help"]
        assert len(rows) == len(asked), name
        for action in asked:
            choices = f"{{{','.join(map(str, action.choices or ()))}}}"
            names = {*action.option_strings, action.dest, action.dest.upper(), action.metavar, choices}
            assert any(row.split(" ")[0].rstrip(",") in names for row in rows), (name, action.dest)
    assert "| `--config FILE` | Required. |" in page
    assert "$" not in page and "%(" not in page


@pytest.mark.parametrize("uri, up", [("config.md", "../"), ("guides/data.md", "../../")])
def test_links_out_of_the_pages_are_shown_as_paths(uri, up):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=uri))
    within = "[data](data.md), [tags](../tasks/tagging.md)" if "/" in uri else "[data](data.md)"
    shown = SITE["on_page_markdown"](
        f"[a.yaml]({up}configs/finetune/a.yaml), [its form]({up}configs/b.yaml), {within}", page=page
    )
    assert shown == f"`configs/finetune/a.yaml`, its form (`configs/b.yaml`), {within}"
