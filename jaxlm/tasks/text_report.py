"""Sections of the report on texts that were written: some of them, the worst, scores by length, signatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.report.sections import ReportSection, excerpt

_SHOWN = 12
_BINS = 5


class WrittenText(NamedTuple):
    """A text that was written for a row, and how good it is, from 0 to 1."""

    line: int
    source: str
    written: str
    references: Sequence[str]
    score: float


def text_sections(texts: Sequence[WrittenText], signatures: Mapping[str, str]) -> list[ReportSection]:
    """Returns the sections on texts, at least one.

    Args:
      signatures: what each score was computed with.
    """
    even = [texts[i] for i in sorted({*np.linspace(0, len(texts) - 1, _SHOWN).astype(int).tolist()})]
    worst = sorted(texts, key=lambda text: text.score)[:_SHOWN]
    computed = {"columns": ["score", "computed with"], "rows": [list(item) for item in signatures.items()]}
    return [
        _table("Texts beside their references", even, "Rows at even distances over the split."),
        _table("Worst texts", worst, "Those of the lowest scores, which are of each text by itself."),
        _by_length(texts),
        ReportSection("How texts are scored", "texts", computed),
    ]


def _table(title: str, texts: Sequence[WrittenText], note: str) -> ReportSection:
    columns = ["line", "source", "written", "reference", "score"]
    rows = [
        [t.line, excerpt(t.source), excerpt(t.written), excerpt("\n".join(t.references), 400), t.score] for t in texts
    ]
    return ReportSection(title, "texts", {"columns": columns, "rows": rows, "bars": "score"}, note)


def _by_length(texts: Sequence[WrittenText]) -> ReportSection:
    """Scores and lengths by the length of the first reference, in words, or in characters where nothing parts words."""
    spaced = sum(" " in text.references[0].strip() for text in texts) * 2 >= len(texts)
    count = (lambda text: len(text.split())) if spaced else len
    lengths = np.asarray([count(text.references[0]) for text in texts])
    written = np.asarray([count(text.written) for text in texts])
    scores = np.asarray([text.score for text in texts])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BINS + 1)[1:-1]).astype(int))
    bins = np.searchsorted(edges, lengths, side="left")
    rows = []
    for number in np.unique(bins):
        inside = bins == number
        low, high = int(lengths[inside].min()), int(lengths[inside].max())
        name = str(low) if low == high else f"{low} to {high}"
        rows.append([name, int(inside.sum()), float(written[inside].mean()), float(scores[inside].mean())])
    unit = "words" if spaced else "characters"
    columns = [f"{unit} of the reference", "texts", f"{unit} written", "score"]
    return ReportSection("Scores by length", "table", {"columns": columns, "rows": rows, "bars": "score"})
