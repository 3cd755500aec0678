"""The fenced blocks of README.md and docs/: where they stand, and the mark above them that says who runs them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.paths import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>\w*)$")
_MARK = re.compile(r" *<!-- (?P<kind>ci|not run): (?P<words>.+) -->")


class Block(NamedTuple):
    """A fenced block.

    Attributes:
      line: of its first fence, from 1.
      run_as: NAME of the mark `<!-- ci: NAME -->` above it; "" without one.
      not_run: the reason of `<!-- not run: REASON -->`; "" without one.
    """

    page: Path
    line: int
    language: str
    text: str
    run_as: str
    not_run: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """Yields the blocks of a page, in their order. A mark stands above its block, a blank line may lie between."""
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        found = _FENCE.fullmatch(lines[number])
        if found is None:
            number += 1
            continue
        end = lines.index(f"{found['indent']}```", number + 1)
        above = next((line for line in reversed(lines[:number]) if line.strip()), "")
        mark = _MARK.fullmatch(above)
        kind, words = (mark["kind"], mark["words"]) if mark else ("", "")
        text = textwrap.dedent("".join(f"{line}\n" for line in lines[number + 1 : end]))
        yield Block(
            page, number + 1, found["language"], text, words if kind == "ci" else "", words if kind == "not run" else ""
        )
        number = end + 1


def all_blocks() -> list[Block]:
    """Returns the blocks of all pages."""
    return [block for page in PAGES for block in blocks_of(page)]


def block_run_as(name: str) -> Block:
    """Returns the block that is marked `<!-- ci: NAME -->`."""
    [found] = blocks_run_as(name)
    return found


def blocks_run_as(name: str) -> list[Block]:
    """Returns the blocks that are marked `<!-- ci: NAME -->`, in the order of the page."""
    return [block for block in all_blocks() if block.run_as == name]


def commands_in(text: str) -> list[str]:
    """Returns the commands of a shell block, without comments; one that ends in a backslash goes on below."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.split(r"(?:^|\s+)#\s", line)[0].strip())]
