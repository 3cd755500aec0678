"""Odd and broken rows in four formats, under both policies: an error in words, or every row is accounted for."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import ColumnRoles, open_tables
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Context
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer
from soaking.damage import mutate
from soaking.outcomes import Outcomes, Said

ROWS = 400
FORMATS = ("jsonl", "csv", "tsv", "parquet")
GOOD = [{"text": f"a good film {i}", "label": ("pos", "neg")[i % 2]} for i in range(6)]
CELLS: tuple[Any, ...] = (
    None, "", " ", "pos", "neg", "NaN", "nan", "1", "1.0", "1e39", "-1", "²", "①", "--1", "9" * 5000, True, False, 0, 1,
    1.5, float("nan"), float("inf"), [], ["pos"], ["pos", "pos"], [1, 0], {"a": 1}, "x" * 10000, "\x00", "\x1b[2J",
    "a\rb", "a\nb", "\ud800", "\u2028", "\ufeff", "a,b", 'a"b', "a\tb", "[MASK]", "é" * 300, 2**70,
)  # fmt: skip


def soak(folder: Path, outcomes: Outcomes) -> None:
    rng = random.Random(3)
    tokenizer = train_tokenizer(["a good film 0 1 2 3 4 5 x"] * 5, TokenizerTrainingConfig(vocab_size=100))
    for number in range(ROWS):
        odd = {"text": rng.choice(CELLS), "label": rng.choice(CELLS)}
        if rng.random() < 0.2:
            odd.pop(rng.choice(("text", "label")))
        broken = rng.random() < 0.4
        for kind in FORMATS:
            path = folder / f"rows.{kind}"
            if not _write(path, kind, odd, broken=broken, rng=rng):
                outcomes.add(kind, "no such cell in the format")
                continue
            in_two = kind == "tsv" and "\n" in f"{odd.get('text')}{odd.get('label')}"  # no quotes hold lines together
            totals = range(len(GOOD) + 1, len(GOOD) + (4 if in_two else 2))
            for policy in ("stop", "skip"):
                what = f"{kind}, {policy}, row {number}: {str(odd)[:120]}{' (bytes changed)' if broken else ''}"
                data = DataConfig.model_validate({"train": {"path": str(path)}, "on_bad_row": policy, "max_length": 16})
                with Said() as said:
                    found, problem = outcomes.attempt(what, lambda: _load(data, tokenizer))  # noqa: B023
                if problem is not None:
                    outcomes.add(kind, f"{problem}, {policy}")
                elif policy == "stop" and found["skipped"]:
                    outcomes.fault(what, "a row is left out")
                elif not broken and found["used"] + found["skipped"] not in totals:
                    outcomes.fault(what, f"{found['used']} rows are used and {found['skipped']} are skipped")
                elif found["skipped"] and "skipped" not in said.text:
                    outcomes.fault(what, "a row is left out, and nothing is said")
                else:
                    outcomes.add(kind, "skipped and counted" if found["skipped"] else "taken")


def _load(data: DataConfig, tokenizer: Any) -> dict[str, int]:
    sources = open_tables(data, ("train",), ColumnRoles(("text",), ("label",)))
    task = Classification.create(ClassificationConfig(), Context(data, tokenizer), sources)
    made = task.datasets(sources)["train"]
    examples = made.examples()
    assert examples is not None
    return {"used": len({example.row for example in examples.examples}), "skipped": made.describe()["skipped"]}


def _write(path: Path, kind: str, odd: dict[str, Any], *, broken: bool, rng: random.Random) -> bool:
    """Writes the good rows with an odd one among them; False where the format cannot hold it."""
    made = [*GOOD[:3], odd, *GOOD[3:]]
    try:
        if kind == "parquet":
            columns = {name: [row.get(name) for row in made] for name in ("text", "label")}
            pyarrow.parquet.write_table(pyarrow.table(columns), path)
            content = path.read_bytes()
        elif kind == "jsonl":
            content = "".join(json.dumps(row) + "\n" for row in made).encode()
        else:
            text = io.StringIO()
            writer = csv.writer(text, delimiter="," if kind == "csv" else "\t")
            writer.writerow(("text", "label"))
            writer.writerows([row.get("text"), row.get("label")] for row in made)
            content = text.getvalue().encode()
    except (pyarrow.ArrowException, UnicodeError, OverflowError):
        return False
    path.write_bytes(mutate(content, rng) if broken else content)
    return True
