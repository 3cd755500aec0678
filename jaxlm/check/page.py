"""The findings of a data check for people: lines for the terminal, and a page."""

from __future__ import annotations

from pathlib import Path

from jaxlm.check.check import DataCheck
from jaxlm.check.splits import Found, Lengths, SplitCheck
from jaxlm.report.report import write_page
from jaxlm.report.sections import ReportSection

_LABELS = 200
"""Labels that the page lists."""
_SHOWN = 8
"""Labels that a line names."""


def check_lines(check: DataCheck) -> str:
    """Returns the findings in a few lines."""
    lines: list[str] = []
    for split in check.splits:
        lines.append(f"{split.name}: {split.rows:,} rows of {split.source}")
        if split.labels:
            named = [f"{name} {count:,}" for name, count in list(split.labels.items())[:_SHOWN]]
            more = f", ... {len(split.labels) - _SHOWN} more" if len(split.labels) > _SHOWN else ""
            lines.append(f"  labels: {', '.join(named)}{more}")
        lines += [f"  {name} lengths: {_lengths(lengths)}" for name, lengths in split.lengths.items()]
        lines += [f"  {_finding(words, found)}" for words, found in _rows_of(split) if found.rows]
    for (one, other), (equal, near) in check.leaks.items():
        if near.rows or equal.rows:
            lines.append(
                f"leaks: the texts of {equal.rows:,} rows of {one} stand in {other}, too, and those of "
                f"{max(0, near.rows - equal.rows):,} more nearly so; {_first(equal if equal.rows else near)}"
            )
    for names in check.alike:
        merged = ", ".join(f"{name!r}: {names[0]!r}" for name in names[1:])
        lines.append(f"labels that differ only by case or spaces: {', '.join(map(repr, names))}; "
                     f"data.clean.labels: {{{merged}}} merges them")  # fmt: skip
    return "\n".join(lines)


def write_check_page(path: Path, check: DataCheck) -> None:
    """Writes the page.

    Raises:
      RunFailure: it cannot be written.
    """
    subtitle = f"Data check, task {check.kind}: " + ", ".join(f"{s.name} {s.rows:,} rows" for s in check.splits)
    write_page(path, name=check.name, subtitle=subtitle, title="Findings", sections=_sections(check))


def _sections(check: DataCheck) -> list[ReportSection]:
    sections: list[ReportSection] = []
    if check.refusals:
        rows = [[refusal] for refusal in check.refusals]
        sections.append(ReportSection("A run refuses this", "texts", {"columns": ["Why"], "rows": rows}))
    sections.append(_overview(check))
    if any(split.labels for split in check.splits):
        sections.append(_labels(check))
    for split in check.splits:
        sections += [_histogram(split, name, lengths) for name, lengths in split.lengths.items()]
    if check.leaks:
        rows = [
            [
                f"{one} in {other}",
                equal.rows,
                max(0, near.rows - equal.rows),
                "\n".join((near if near.rows else equal).places),
            ]
            for (one, other), (equal, near) in check.leaks.items()
        ]
        note = (
            "Rows whose texts also stand in the other split: its scores would say too much. data.clean.leaks=drop "
            "drops the equal ones from training."
        )
        columns = ["Splits", "Equal texts", "Nearly equal", "The first"]
        sections.append(ReportSection("Leaks between splits", "texts", {"columns": columns, "rows": rows}, note))
    places = [
        [split.name, words, found.rows, "\n".join(found.places)]
        for split in check.splits
        for words, found in _rows_of(split)
        if found.rows
    ]
    if places:
        content = {"columns": ["Split", "Rows", "How many", "The first"], "rows": places}
        sections.append(ReportSection("Rows to look at", "texts", content))
    if check.alike:
        rows = [[", ".join(map(repr, names))] for names in check.alike]
        note = "data.clean.labels merges them, for instance {Spam: spam}."
        sections.append(
            ReportSection("Labels that differ by case or spaces", "table", {"columns": ["Labels"], "rows": rows}, note)
        )
    return sections


def _overview(check: DataCheck) -> ReportSection:
    rows = [
        [s.name, s.source, s.rows, s.unreadable + s.unusable.rows, s.equal.rows, s.contradicting.rows, s.near.rows]
        for s in check.splits
    ]
    columns = ["Split", "Source", "Rows", "Unusable", "Equal texts", "Of those with other labels", "Nearly equal"]
    return ReportSection("Splits", "table", {"columns": columns, "rows": rows})


def _labels(check: DataCheck) -> ReportSection:
    names = list(dict.fromkeys(name for split in check.splits for name in split.labels))
    first = check.splits[0]
    total = max(1, sum(first.labels.values()))
    share = f"Share of {first.name}"
    rows = [
        [name, *(split.labels.get(name, 0) for split in check.splits), first.labels.get(name, 0) / total]
        for name in names[:_LABELS]
    ]
    columns = ["Label", *(split.name for split in check.splits), share]
    note = f"The first {_LABELS} of {len(names)} labels." if len(names) > _LABELS else ""
    return ReportSection("Labels", "table", {"columns": columns, "rows": rows, "bars": share}, note)


def _histogram(split: SplitCheck, name: str, lengths: Lengths) -> ReportSection:
    total = max(1, sum(rows for _, rows in lengths.histogram))
    low, rows = 0, []
    for bound, count in lengths.histogram:
        rows.append(
            [f"{low + 1 if low else 0} to {bound}" if bound is not None else f"over {low}", count, count / total]
        )
        low = bound or low
    content = {"columns": [lengths.unit.capitalize(), "Rows", "Share"], "rows": rows, "bars": "Share"}
    title = f"Lengths of {split.name}" + (", targets" if name == "target" else "")
    return ReportSection(title, "table", content, f"{_lengths(lengths).capitalize()}.")


def _lengths(lengths: Lengths) -> str:
    said = f"median {lengths.median}, 95% at most {lengths.share_95}, longest {lengths.longest} {lengths.unit}"
    if lengths.limit is None:
        return said
    total = max(1, sum(rows for _, rows in lengths.histogram))
    key = "data.max_length"
    return f"{said}; longer than the {lengths.limit} of {key}: {_count(lengths.longer)} ({lengths.longer / total:.1%})"


def _rows_of(split: SplitCheck) -> list[tuple[str, Found]]:
    return [
        ("unusable", split.unusable),
        ("texts that stand in an earlier row", split.equal),
        ("texts that stand in another row with another label", split.contradicting),
        ("texts nearly equal to another row's", split.near),
    ]


def _finding(words: str, found: Found) -> str:
    return f"{words}: {_count(found.rows)}; {_first(found)}"


def _count(rows: int) -> str:
    return f"{rows:,} row" if rows == 1 else f"{rows:,} rows"


def _first(found: Found) -> str:
    return f"the first: {found.places[0]}" if found.places else ""
