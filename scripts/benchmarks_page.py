"""Writes the measurements that are kept as JSON into docs/benchmarks.md, and draws docs/benchmarks.csv.

    python scripts/benchmarks_page.py

`jaxlm bench ... --out docs/benchmarks/NAME.json --log docs/benchmarks.csv` keeps a measurement. Its table takes the
place of what stands between `<!-- measured: NAME.json -->` and `<!-- end -->`; docs/images/benchmarks.svg has a dot for
each line of the CSV file.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path
from typing import Any

from jaxlm.bench.harness import speed_table
from jaxlm.bench.record import Comparison

DOCS = Path(__file__).resolve().parents[1] / "docs"
PLACE = re.compile(r"(<!-- measured: (?P<name>[\w.-]+\.json) -->\n).*?(<!-- end -->)", re.S)
_LABELS, _RIGHT, _ROW, _TOP, _BOTTOM, _WIDTH = 440, 40, 22, 34, 44, 920
_TICKS = (0.5, 1, 1.5, 2, 3, 4)
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328 } .tick { fill: #656d76 } .grid { stroke: #d0d7de }
  .equal { stroke: #656d76; stroke-dasharray: 4 3 } .newest { fill: #1f6feb } .older { fill: none; stroke: #1f6feb }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .tick { fill: #9198a1 } .grid { stroke: #3d444d } }
"""


def measured(record: Mapping[str, Any]) -> str:
    """The lines of one measurement: how, when and on what it was made, and its table."""
    machine, packages = record["machine"], record["packages"]
    shown = [name for name in ("jax", "flax", "torch", "transformers") if name in packages]
    versions = ", ".join(f"{name} {packages[name]}" for name in shown)
    day = date.fromisoformat(record["date"])
    where = f"{machine['device']}, {machine['cores']} cores, Python {record['python']}, {versions}"
    head = f"`{record['command']}`, {day.day} {day:%B %Y}, commit {record['commit']}, {where}:"
    table = record["table"] if "table" in record else speed_table(Comparison(record["results"], record["unit"]))
    return f"{head}\n\n{table}\n"


def fill(page: str, folder: Path) -> str:
    """Returns the page with each measurement of `folder` in its place.

    Raises:
      SystemExit: a file has no place on the page, or a place no file.
    """
    files, places = {path.name for path in folder.glob("*.json")}, {found["name"] for found in PLACE.finditer(page)}
    if files != places:
        raise SystemExit(f"docs/benchmarks.md and {folder} differ in {', '.join(sorted(files ^ places))}")

    def write(found: re.Match[str]) -> str:
        record = json.loads((folder / found["name"]).read_text(encoding="utf-8"))
        return f"{found[1]}{measured(record)}{found[3]}"

    return PLACE.sub(write, page)


def drawing(lines: Sequence[Mapping[str, str]]) -> str:
    """Returns an SVG of ratios, a row for what was measured beside whom, over a logarithmic axis."""
    rows: dict[str, list[Mapping[str, str]]] = {}
    for line in lines:
        rows.setdefault(f"{line['measured']} / {line['contender']}", []).append(line)
    ratios = [float(line["ratio"]) for line in lines]
    low, high = math.log(min(0.5, *ratios)), math.log(max(4, *ratios) * 1.05)
    height = _TOP + _ROW * len(rows) + _BOTTOM

    def x(ratio: float) -> float:
        return _LABELS + (math.log(ratio) - low) / (high - low) * (_WIDTH - _LABELS - _RIGHT)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="How many times as fast as each contender"><style>{_STYLE}</style>',
        f'<text x="{_LABELS}" y="18">how many times as fast as what stands behind the slash; filled: the newest</text>',
    ]
    for tick in _TICKS:
        style = "equal" if tick == 1 else "grid"
        parts.append(f'<path class="{style}" d="M{x(tick):.1f} {_TOP}V{height - _BOTTOM}"/>')
        parts.append(f'<text class="tick" text-anchor="middle" x="{x(tick):.1f}" y="{height - 24}">{tick}</text>')
    for number, (name, found) in enumerate(rows.items()):
        y = _TOP + _ROW * (number + 0.5)
        parts.append(f'<text text-anchor="end" x="{_LABELS - 12}" y="{y + 4:.1f}">{escape(name)}</text>')
        for line in found:
            style, ratio = "newest" if line is found[-1] else "older", float(line["ratio"])
            what = f"{line['date']}, commit {line['commit']}, {line['machine']}: {ratio:g}"
            parts.append(
                f'<circle class="{style}" cx="{x(ratio):.1f}" cy="{y:.1f}" r="5"><title>{escape(what)}</title></circle>'
            )
        newest = float(found[-1]["ratio"])
        parts.append(f'<text class="tick" x="{x(newest) + 9:.1f}" y="{y + 4:.1f}">{newest:.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    page = DOCS / "benchmarks.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), DOCS / "benchmarks"), encoding="utf-8")
    with (DOCS / "benchmarks.csv").open(encoding="utf-8", newline="") as file:
        (DOCS / "images" / "benchmarks.svg").write_text(drawing(list(csv.DictReader(file))), encoding="utf-8")


if __name__ == "__main__":
    main()
