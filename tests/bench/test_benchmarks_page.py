"""docs/benchmarks.md says what the kept measurements say: `scripts/benchmarks_page.py` writes and draws them."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
SCRIPT = runpy.run_path(str(REPOSITORY / "scripts" / "benchmarks_page.py"))


def ratios() -> list[dict[str, str]]:
    with (DOCS / "benchmarks.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_page_and_picture_are_those_of_the_kept_figures():
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    assert SCRIPT["fill"](page, DOCS / "benchmarks") == page, "run python scripts/benchmarks_page.py"
    assert SCRIPT["drawing"](ratios()) == (DOCS / "images" / "benchmarks.svg").read_text(encoding="utf-8")


def test_every_kept_ratio_stands_in_the_csv_file():
    logged = {(line["commit"], line["contender"], float(line["ratio"])) for line in ratios()}
    for path in (DOCS / "benchmarks").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        if "ratios" not in record:  # of a suite without contenders
            continue
        _, *others = record["ratios"]
        assert {(record["commit"], name, round(record["ratios"][name], 3)) for name in others} <= logged, path.name


def test_a_ratio_has_a_dot_at_its_place(tmp_path):
    lines = [{**ratios()[0], "ratio": ratio} for ratio in ("1", "2", "4")]
    root = ElementTree.fromstring(SCRIPT["drawing"](lines))
    dots = [dot for dot in root if dot.tag.endswith("circle")]
    first, second, third = (float(dot.get("cx", "nan")) for dot in dots)
    assert second - first == pytest.approx(third - second, abs=0.11) and second > first  # a logarithmic axis
    assert [dot.get("class") for dot in dots] == ["older", "older", "newest"]


def test_a_file_without_a_place_is_named(tmp_path):
    (tmp_path / "new.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SystemExit, match="new.json"):
        SCRIPT["fill"]("no place", tmp_path)
