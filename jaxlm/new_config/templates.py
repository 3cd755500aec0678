"""The shipped configs as templates: what each is, and its text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import yaml

from jaxlm.config.shipped import find_shipped, shipped_configs


def template_lines() -> str:
    """Returns a line for each template: its name, its task, and the first sentence of its comment."""
    rows = [(name, _task(path), _sentence(path)) for name, path in shipped_configs().items()]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:<{widths[0]}}  {task:<{widths[1]}}  {sentence}" for name, task, sentence in rows)


def template_text(name: str) -> str:
    """Returns the text of a template.

    Raises:
      UserError: there is none of that name.
    """
    return find_shipped(name, "--template").read_text("utf-8")


def _task(path: Path) -> str:
    task = yaml.safe_load(path.read_text("utf-8")).get("task")
    return str(task.get("kind", "classification")) if isinstance(task, Mapping) else "classification"


def _sentence(path: Path) -> str:
    lines = path.read_text("utf-8").split("\n")
    end = next(i for i, line in enumerate([*lines, ""]) if not line.startswith("#"))
    comment = " ".join(line.removeprefix("#").strip() for line in lines[:end])
    return re.split(r"(?<=[.:])\s", comment, maxsplit=1)[0]
