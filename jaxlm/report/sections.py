"""`ReportSection`: a part of report.html as JSON values, which a task makes and the page renders."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple


class ReportSection(NamedTuple):
    """A part of report.html, kept in the run directory's analysis.json.

    Attributes:
      title: its heading.
      kind: how the page shows it.
      content: of a "table" `columns` and `rows`; of a "matrix" `labels` and `counts` (rows: gold, columns: predicted);
        of a "chart" `series` and `axes`; of "texts" `columns` and `rows` of strings, which the page escapes.
      note: a sentence below the heading.
    """

    title: str
    kind: Literal["table", "matrix", "chart", "texts"]
    content: dict[str, Any]
    note: str = ""
