"""`ReportSection`: a part of report.html as JSON values, which a task makes and the page renders."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxlm.errors import UserError
from jaxlm.files import atomic_write, explain_write_errors

_KEYS = {
    "table": ("columns", "rows"),
    "matrix": ("labels", "counts"),
    "chart": ("series", "axes"),
    "texts": ("columns", "rows"),
}
"""What `content` must hold."""


class ReportSection(NamedTuple):
    """A part of report.html, kept in the run directory's analysis.json.

    The page shows all of it, so the task bounds its size, whatever the size of the split. Every string is escaped.

    Attributes:
      title: its heading.
      kind: how the page shows it.
      content: JSON values, by kind:
        "table": `columns`, names; `rows`, a list of cells each: a string, an int, a float (shown with three decimals)
          or None (a dash). Optional `bars`: name of a column of values from 0 to 1 that are also drawn as bars.
        "matrix": `labels`; `counts`, int [labels, labels], rows gold and columns predicted. Optional `totals`, int
          [labels]: what shares of a row are taken of; absent: the row's sum.
        "chart": `series`, a list of {"x": numbers, "y": numbers, "style": "line" or "dots", "name": of the legend},
          drawn in two colors by turns;
          `axes`, {"x": label, "y": label} and, optional, `x_range`, `y_range` (two numbers) and `diagonal` (true draws
          x = y). Optional `alt`: what the chart shows, for people who cannot see it.
        "texts": as "table"; long strings keep their line breaks.
      note: a sentence below the heading.
    """

    title: str
    kind: Literal["table", "matrix", "chart", "texts"]
    content: dict[str, Any]
    note: str = ""


def write_analysis(path: Path, sections: Sequence[ReportSection]) -> None:
    """Writes a run's analysis.json: a list of sections as objects. Without sections, removes the file.

    Numpy values become JSON values, and numbers that are not finite become null.

    Raises:
      ValueError: a section of an unknown kind, or without a key that its kind needs.
      RunFailure: the file cannot be written.
    """
    for section in sections:
        if mistake := _mistake(section.kind, section.content):
            raise ValueError(f"section {section.title!r}: {mistake}")
    with explain_write_errors(path):
        if not sections:
            path.unlink(missing_ok=True)
            return
        with atomic_write(path) as temporary:
            values = [to_json(section._asdict()) for section in sections]
            temporary.write_text(json.dumps(values, allow_nan=False), "ascii")


def read_analysis(path: Path) -> list[ReportSection]:
    """Reads what `write_analysis` wrote; [] if there is no such file.

    Raises:
      UserError: the file does not hold a list of sections.
    """
    if not path.exists():
        return []
    try:
        sections = [ReportSection(**fields) for fields in json.loads(path.read_text("utf-8"))]
        mistake = next((m for s in sections if (m := _mistake(s.kind, s.content))), "")
    except (TypeError, ValueError) as error:
        sections, mistake = [], str(error)
    if mistake:
        raise UserError(f"{path}: expected a list of report sections; {mistake}. Delete the file")
    return sections


def excerpt(text: str, length: int = 280) -> str:
    """Returns at most `length` characters of a text, cut at a word if there is one, control characters made visible."""
    text = "".join(c if c.isprintable() or c in "\n\t " else "\ufffd" for c in text[: length + 1])
    if len(text) <= length:
        return text
    cut = text[:length].rstrip()
    return (cut.rsplit(maxsplit=1)[0] if " " in cut[-30:] else cut) + " …"


def _mistake(kind: str, content: Any) -> str:
    """Returns what is wrong with a section, or an empty string."""
    if kind not in _KEYS:
        return f"unknown kind {kind!r}"
    absent = [key for key in _KEYS[kind] if not isinstance(content, dict) or key not in content]
    return f"a {kind} without {absent[0]!r}" if absent else ""


def to_json(value: Any) -> Any:
    """Returns JSON values for those of numpy; null for a number that is not finite."""
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_json(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
