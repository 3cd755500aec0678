"""Rows held out by a hash: shares of each label, whatever the order; copies on one side; stable as rows are added."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from jaxlm.config.loading import override_config
from jaxlm.config.schema import Config
from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.examples.held_out import hold_out_shares
from jaxlm.data.examples.tables import ColumnRoles, open_tables
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.tasks.question_answering import QuestionAnswering, QuestionAnsweringConfig

VOCABULARY = [f"word{i}" for i in range(4000)]


def labelled(counts: dict[str, int], seed: int = 0) -> list[dict[str, Any]]:
    """Rows of texts that have nothing in common."""
    rng = random.Random(seed)
    return [
        {"text": " ".join(rng.choices(VOCABULARY, k=8)), "label": label}
        for label, count in counts.items()
        for _ in range(count)
    ]


def split(rows: list[dict[str, Any]], separator: str | None = None, **shares: Any) -> dict[str, set[str]]:
    """The texts of each split; shares are fractions, or (fraction, seed)."""
    table = Table("rows.csv", ("text", "label"), tuple(rows), tuple(range(1, len(rows) + 1)))
    pairs = {name: share if isinstance(share, tuple) else (share, 0) for name, share in shares.items()}
    sources = {name: SourceConfig(fraction=fraction, seed=seed) for name, (fraction, seed) in pairs.items()}
    made = hold_out_shares(table, sources, ("text",), ("label",), separator)
    for part in made.values():
        assert list(part.lines) == sorted(part.lines)  # in the order of the table
    return {name: {row["text"] for row in part.rows} for name, part in made.items()}


def test_each_label_gives_its_share_also_the_rare_ones():
    rows = labelled({"a": 900, "b": 100, "rare": 20, "once": 1})
    parts = split(rows, validation=0.1, test=0.2)
    label = {row["text"]: row["label"] for row in rows}
    counts = {name: Counter(label[text] for text in texts) for name, texts in parts.items()}
    assert sum(map(len, parts.values())) == len(set.union(*parts.values())) == len(rows)
    for name, share in {"validation": 0.1, "test": 0.2}.items():
        for given, rows_of in {"a": 900, "b": 100, "rare": 20}.items():
            assert abs(counts[name][given] / (share * rows_of) - 1) <= 0.2 + 1e-9, (name, given, counts)
        assert counts[name]["once"] == 0
    assert split(rows, validation=(0.1, 1))["validation"] != split(rows, validation=0.1)["validation"]


def test_sides_stay_where_rows_are_shuffled_or_added():
    rows = labelled({"a": 300, "b": 300})
    before = split(rows, validation=0.1)
    assert split(random.Random(3).sample(rows, len(rows)), validation=0.1) == before
    more = split([*labelled({"a": 60, "b": 60}, seed=9), *rows], validation=0.1)
    assert before["validation"] <= more["validation"] and before["train"] <= more["train"]
    assert split(rows, validation=0.2, test=0.1)["test"] == split(rows, test=0.1)["test"]


def test_equal_and_nearly_equal_texts_stay_on_one_side():
    rows = labelled({"a": 200, "b": 200})
    copies = [{"text": row["text"] + " indeed", "label": "b"} for row in rows[:150]]
    copies += [{"text": row["text"].upper() + "!", "label": "a"} for row in rows[100:250]]
    parts = split([*rows, *copies, *rows[:50]], validation=0.2)
    assert 0.1 < len(parts["validation"]) / 700 < 0.3
    for i, row in enumerate(rows):
        sides = {
            name
            for name, texts in parts.items()
            for text in (row["text"], *(f"{row['text']} indeed",) * (i < 150), *(f"{row['text'].upper()}!",) * (i > 99))
            if text in texts
        }
        assert len(sides) == 1


def test_lists_of_labels_give_their_rarest_its_share():
    rows = labelled({"x": 400})
    for i, row in enumerate(rows):
        row["label"] = ["common", "rare"] if i % 20 == 0 else ["common"]
    held = split(rows, validation=0.2)["validation"]
    assert sum(row["text"] in held for row in rows[::20]) == 4
    joined = [{**row, "label": ";".join(row["label"])} for row in rows]
    assert split(joined, separator=";", validation=0.2)["validation"] == held


def test_too_few_rows_are_said():
    with pytest.raises(
        UserError, match=r"data\.validation\.fraction=0\.1: nothing can be held out of the 8 rows of row"
    ):
        split([{"text": "the same text in each row", "label": "a"}] * 8, validation=0.1)


def test_questions_over_one_context_stay_together():
    contexts = [row["text"] for row in labelled({"x": 60})]
    rows = [
        {"question": f"what is {i}", "context": text, "answers": []} for text in contexts for i in range(3)
    ]  # fmt: skip
    data = DataConfig.model_validate({"train": {"rows": rows}, "validation": {"fraction": 0.2}})
    config = QuestionAnsweringConfig()
    texts, groups = QuestionAnswering.text_columns(config), QuestionAnswering.group_columns(config)
    opened = open_tables(data, ("train", "validation"), ColumnRoles(texts, groups=groups))
    train, held = ({row["context"] for row in opened.tables[name].rows} for name in ("train", "validation"))
    assert not train & held and len(opened.tables["validation"]) % 3 == 0 and 8 <= len(held) <= 14


def test_only_the_splits_that_are_asked_for_are_given_and_each_the_same():
    rows = labelled({"a": 100, "b": 100})
    data = DataConfig.model_validate(
        {"train": {"rows": rows}, "validation": {"fraction": 0.1}, "test": {"fraction": 0.1}}
    )
    whole = open_tables(data, ("train", "validation", "test"), ColumnRoles(("text",), ("label",))).tables
    for name in ("train", "validation", "test"):
        alone = open_tables(data, (name,), ColumnRoles(("text",), ("label",))).tables
        assert set(alone) == {name} and alone[name].rows == whole[name].rows


def test_folds_divide_what_test_rows_leave():
    rows = labelled({"a": 60, "b": 60})
    data = DataConfig.model_validate(
        {"train": {"rows": rows}, "test": {"fraction": 0.2}, "fold": {"number": 0, "folds": 3}}
    )
    tables = open_tables(data, ("train", "validation", "test"), ColumnRoles(("text",), ("label",))).tables
    texts = {name: {row["text"] for row in table.rows} for name, table in tables.items()}
    assert texts["test"] == split(rows, test=0.2)["test"]
    assert sum(map(len, texts.values())) == len(set.union(*texts.values())) == 120
    assert abs(len(texts["validation"]) - (120 - len(texts["test"])) / 3) <= 1


def test_rows_are_held_out_before_labels_are_thinned_and_copies_dropped():
    rows = labelled({"a": 100, "b": 100})
    base = {"train": {"rows": [*rows, *rows]}, "validation": {"fraction": 0.1}}
    whole = open_tables(
        DataConfig.model_validate(base), ("train", "validation"), ColumnRoles(("text",), ("label",))
    ).tables
    less = {**base, "keep_labels": {"b": 0.1}, "clean": {"deduplicate": True, "leaks": "drop"}}
    thinned = open_tables(
        DataConfig.model_validate(less), ("train", "validation"), ColumnRoles(("text",), ("label",))
    ).tables
    assert thinned["validation"].rows == whole["validation"].rows
    assert {row["text"] for row in thinned["train"].rows} < {row["text"] for row in whole["train"].rows}


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["data.validation={fraction: 0.1, path: x.csv}"], "exactly one of .*; found path, fraction"),
        (["data.validation={fraction: 0.1, limit: 5}"], "limit: not beside fraction"),
        (["data.validation={fraction: 1.5}"], "expected number > 0 and < 1 or null, found 1.5"),
        (["data.validation={path: x.csv, seed: 3}"], "seed: only beside fraction"),
        (["data.train={fraction: 0.5}"], r"train\.fraction: only of validation and test"),
        (["data.train=null", "data.validation={fraction: 0.1}"], r"validation\.fraction: expected train"),
        (["data.validation={fraction: 0.5}", "data.test={fraction: 0.5}"], "together they leave no row"),
        (["data.train={mixture: [{fraction: 0.5}]}"], "sources of their own"),
    ],
)
def test_what_a_fraction_cannot_be(overrides, problem):
    base = Config.model_validate({"name": "x", "data": {"train": {"path": "train.csv"}}})
    with pytest.raises(UserError, match=problem):
        override_config(base, overrides)
