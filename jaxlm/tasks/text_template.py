"""Templates: a text with the names of columns in braces, filled from a row."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import NamedTuple

from jaxlm.errors import UserError

SOURCE = "source"
"""The name that stands for the column `task.source`, whatever that is called."""


class Template(NamedTuple):
    """A template taken apart: literal texts and the columns behind them, "" behind the last."""

    parts: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str, source: str) -> Template:
        """Reads a template; `{{` and `}}` stand for braces.

        Args:
          source: the column that `{source}` stands for.
        Raises:
          UserError: braces that do not match; what is no name of a column; or no column at all.
        """
        advice = "expected names of columns in braces, as in 'question: {question}'; {{ and }} stand for braces"
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as error:
            raise UserError(f"task.template={text!r}: {error}; {advice}") from None
        parts = []
        for literal, name, form, conversion in parsed:
            if name is not None and (not name or form or conversion):
                raise UserError(f"task.template={text!r}: {{{name}{'...' if name else ''}}} is no column; {advice}")
            parts.append((literal, source if name == SOURCE else name or ""))
        if not any(name for _, name in parts):
            raise UserError(f"task.template={text!r}: no column in it; {advice}")
        return cls(tuple(parts))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name))

    def spelled(self, source: str) -> str | None:
        """Returns the template with `{source}` for that column; None where it has others."""
        if self.columns != (source,):
            return None
        escaped = ((literal.replace("{", "{{").replace("}", "}}"), name) for literal, name in self.parts)
        return "".join(literal + (f"{{{SOURCE}}}" if name else "") for literal, name in escaped)

    def fill(self, texts: Mapping[str, str]) -> str:
        """Returns the text of a row."""
        return "".join(literal + (texts[name] if name else "") for literal, name in self.parts)
