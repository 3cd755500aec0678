"""Hooks of mkdocs.yml: writes the page of the command line, and shows paths of the repository that are no pages."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxlm.options import make_parser

PAGE = "commands.md"


def command_page() -> str:
    """Returns the reference of the command line in Markdown, made from its parser."""
    parts = [
        "# Command line\n\nMade from the program itself when this site is built; `jaxlm COMMAND --help` says the same. "
        "Exit status: 0, 1 for a failure, 2 for a mistake in what was given, 3 for an interruption that was saved."
    ]
    for name, command in _commands().items():
        parts += [f"## jaxlm {name}", str(command.description)]
        for group in command._action_groups:
            rows = [_row(action) for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
            if rows:
                title = "" if group.title in ("options", "positional arguments") else f"**{group.title}**"
                about = " ".join(part for part in (title, group.description or "") if part)
                table = "\n".join(["| Option | What it is |", "|---|---|", *rows])
                parts.append(f"{about}\n\n{table}" if about else table)
    return "\n\n".join(parts) + "\n"


def _commands() -> dict[str, argparse.ArgumentParser]:
    [subparsers] = [a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(subparsers.choices)


def _row(action: argparse.Action) -> str:
    value = action.metavar or ("" if action.nargs == 0 else f"{{{','.join(map(str, action.choices or ()))}}}")
    value = " ".join(value) if isinstance(value, tuple) else value
    value = "" if value == "{}" and action.nargs == 0 else action.dest.upper() if value == "{}" else value
    many = " ..." if action.nargs in ("+", "*") else ""
    name = ", ".join(action.option_strings)
    shown = " ".join(part for part in (name, value + many) if part)
    needed = "Required." if action.required and action.option_strings else ""
    about = (action.help or "").replace("%(default)s", str(action.default))
    about = f"{about[:1].upper()}{about[1:]}{'.' if needed and about else ''}"
    cells = [f"`{shown}`", " ".join(part for part in (about, needed) if part)]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def pages_of(nav: Any) -> Iterator[str]:
    """Yields the files that a `nav` of mkdocs.yml names."""
    for entry in nav:
        for value in [entry] if isinstance(entry, str) else entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def on_config(config: Any) -> Any:
    """Puts pages that the navigation does not name yet at its end."""
    docs = Path(config["docs_dir"])
    there = sorted(page.relative_to(docs).as_posix() for page in docs.rglob("*.md"))
    if more := [name for name in there if name not in set(pages_of(config["nav"]))]:
        config["nav"] = [*config["nav"], {"More": more}]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the page of the command line."""
    file = import_module("mkdocs.structure.files").File
    files.append(file.generated(config, PAGE, content=command_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shows links to files outside docs/ as paths: the site does not hold them."""
    up = "../" * (1 + page.file.src_uri.count("/"))

    def shown(found: re.Match[str]) -> str:
        name, path = found[1], found[2]
        return f"`{path}`" if path.endswith(name.strip("`")) else f"{name} (`{path}`)"

    return re.sub(rf"\[([^\]]+)\]\({re.escape(up)}([^.)][^)]*)\)", shown, markdown)
