"""Folds of a cross-validation: every text is held out once, labels are spread evenly, rows may stand in any order."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer

from jaxlm.data.config import DataConfig, FoldConfig, SourceConfig
from jaxlm.data.examples.folds import KEPT, assign_folds
from jaxlm.data.examples.tables import ColumnRoles, open_tables
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks import TASKS
from jaxlm.tasks.records import Context, Request

FOLDS = 3


def table(rows: list[dict[str, Any]]) -> Table:
    return Table("rows", ("text", "label"), tuple(rows), tuple(range(1, len(rows) + 1)))


def labelled(counts: dict[Any, int]) -> list[dict[str, Any]]:
    return [{"text": f"{label} {i}", "label": label} for label, count in counts.items() for i in range(count)]


def folds_of(rows: list[dict[str, Any]], seed: int = 0) -> np.ndarray:
    return assign_folds(table(rows), ("text",), ("label",), folds=FOLDS, seed=seed)


def test_labels_and_rows_are_spread_evenly():
    rows = labelled({"a": 20, "b": 7, "c": 2})
    folds = folds_of(rows)
    for label in ("a", "b", "c", None):
        counts = np.bincount(folds[[label in (None, row["label"]) for row in rows]], minlength=FOLDS)
        assert counts.max() - counts.min() <= 1, (label, counts)


def test_neither_the_order_of_rows_nor_anything_but_the_seed_decides():
    rows = labelled({"a": 20, "b": 9})
    found = {row["text"]: fold for row, fold in zip(rows, folds_of(rows).tolist(), strict=True)}
    shuffled = random.Random(1).sample(rows, len(rows))
    assert [found[row["text"]] for row in shuffled] == folds_of(shuffled).tolist()
    assert folds_of(rows, seed=1).tolist() != folds_of(rows).tolist()


def test_rows_of_one_text_stay_together_whatever_their_labels():
    rows = [*labelled({"a": 12, "b": 12}), *labelled({"a": 12}), {"text": "a 3", "label": "b"}]
    by_text: dict[str, set[int]] = {}
    for row, fold in zip(rows, folds_of(rows).tolist(), strict=True):
        by_text.setdefault(row["text"], set()).add(fold)
    assert all(len(folds) == 1 for folds in by_text.values())


def test_a_label_of_one_text_is_always_trained_on():
    assert folds_of(labelled({"a": 9, "once": 1}))[-1] == KEPT
    assert KEPT not in folds_of(
        [{"text": str(i), "label": i / 7} for i in range(9)]
    )  # a regression's are all different
    assert KEPT not in folds_of([{"text": str(i), "label": ["O", "B-x"]} for i in range(9)])


def test_numbers_are_dealt_in_their_order():
    rows = [{"text": f"row {i}", "label": (i * 7 % 30) / 3} for i in range(30)]
    folds = folds_of(rows)[np.argsort([row["label"] for row in rows])]
    assert all(set(folds[i : i + FOLDS].tolist()) == {0, 1, 2} for i in range(0, 30, FOLDS))


def source(**fold: Any) -> DataConfig:
    return DataConfig(train=SourceConfig(rows=tuple(labelled({"a": 8, "b": 6}))), **fold)


def test_every_row_is_held_out_once():
    held_out: Counter[str] = Counter()
    for number in range(FOLDS):
        data = source(fold=FoldConfig(number=number, folds=FOLDS))
        tables = open_tables(data, ("train", "validation", "test"), ColumnRoles(("text",), ("label",))).tables
        train, validation = ({row["text"] for row in tables[split].rows} for split in ("train", "validation"))
        assert len(train) + len(validation) == 14 and not train & validation
        held_out.update(validation)
        only = open_tables(data, ("validation",), ColumnRoles(("text",), ("label",))).tables
        assert set(only) == {"validation"} and only["validation"] == tables["validation"]
    assert len(held_out) == 14 and set(held_out.values()) == {1}


def test_what_cannot_be_folded_is_refused():
    with pytest.raises(ValueError, match="expected number below folds"):
        FoldConfig(number=3, folds=3)
    with pytest.raises(ValueError, match="set data.validation=null"):
        source(validation=SourceConfig(rows=({"text": "x", "label": "a"},)), fold=FoldConfig(number=0, folds=2))
    with pytest.raises(UserError, match="train.folds=20: .* too few different texts"):
        open_tables(source(fold=FoldConfig(number=19, folds=20)), ("train",), ColumnRoles(("text",), ("label",)))
    with pytest.raises(UserError, match="they fill 14"):  # the first run says it, before any is trained
        open_tables(source(fold=FoldConfig(number=0, folds=20)), ("train",), ColumnRoles(("text",), ("label",)))


@pytest.mark.parametrize(
    ("kind", "texts", "labels"), [("tagging", "tokens", "tags"), ("classification", "text", "label")]
)
def test_every_fold_has_the_labels_of_all_rows(kind, texts, labels):
    """Also where the only row of one is held out, so that its run can score it, and all runs have one order."""
    cells = [["O", "B-x"], ["B-y", "O"]] if kind == "tagging" else [["x"], ["y"]]
    rows = [{texts: f"a{i} b", labels: cells[i % 2]} for i in range(12)]
    rows.append({texts: "rare one", labels: ["O", "B-z"] if kind == "tagging" else ["x", "z"]})
    made = []
    for number in range(FOLDS):
        fold = {"number": number, "folds": FOLDS}
        data = DataConfig.model_validate({"train": {"rows": rows}, "fold": fold, "augment": {"case": 0.9}})
        config = TASKS[kind].Config.model_validate({"kind": kind})
        sources = TASKS[kind].open(config, Request(data, ("train", "validation"), Path("unused"), 0))
        task = TASKS[kind].create(config, Context(data, byte_tokenizer()), sources)
        assert set(task.datasets(sources)) == {"train", "validation"}
        made.append((task.label_names, task.describe().get("label_counts", {}).get("z")))
    names, counts = zip(*made, strict=True)
    assert len(set(names)) == 1 and any("z" in name for name in names[0])
    if kind == "classification":
        assert 0 in counts and sum(count > 0 for count in counts) == FOLDS - 1  # those of the training rows
