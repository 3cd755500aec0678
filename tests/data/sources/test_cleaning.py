"""Cleaning: what it changes, what it must not touch, and what it counts."""

from __future__ import annotations

import logging
import sys
import unicodedata

import pytest

from jaxlm.data.config import CleanConfig
from jaxlm.data.sources.cleaning import clean_tables, clean_text, replace_labels
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError

ALL = CleanConfig(unicode="NFKC", control_characters=True, whitespace=True)


def table(name, *texts):
    rows = tuple({"text": text, "label": f" {i}\x00"} for i, text in enumerate(texts))
    return Table(name, ("text", "label"), rows, tuple(range(2, len(rows) + 2)))


def texts(table):
    return [row["text"] for row in table.rows]


@pytest.mark.parametrize(
    ("text", "clean", "expected"),
    [
        ("ｅ\u0301 ﬁ\u200b", CleanConfig(), "ｅ\u0301 ﬁ\u200b"),
        ("e\u0301 ﬁ", CleanConfig(unicode="NFC"), "é ﬁ"),
        ("Ｅe\u0301 ﬁ", CleanConfig(unicode="NFKC"), "Eé fi"),
        ("a\x00b\x1b[0m\tc\nd", CleanConfig(control_characters=True), "ab[0m\tc\nd"),
        ("one\r\ntwo\rthree\x0cfour\x85five", CleanConfig(control_characters=True), "one\ntwo\nthree\nfour\nfive"),
        ("\ufeffco\u00adop\u200b \u202eabc\u2066", CleanConfig(control_characters=True), "coop abc"),
        # Joiners are spelling (Persian "mikhaham") and hold emoji together.
        ("می\u200cخواهم 👩\u200d💻", CleanConfig(control_characters=True), "می\u200cخواهم 👩\u200d💻"),
        ("  a\u00a0\u3000b\u2028\n c ", CleanConfig(whitespace=True), "a b c"),
        # Removing a zero-width space lets the accent reach its letter.
        ("e\u200b\u0301", CleanConfig(unicode="NFC", control_characters=True), "é"),
    ],
)
def test_clean_text(text, clean, expected):
    assert clean_text(text, clean) == expected


def test_cleaning_twice_is_cleaning_once_for_every_character():
    every = map(chr, range(sys.maxunicode + 1))
    characters = [character for character in every if unicodedata.category(character) not in ("Cn", "Co", "Cs")]
    assert len(characters) > 140_000
    once = clean_text("".join(f"a{character}e" for character in characters), ALL)
    assert clean_text(once, ALL) == once
    assert "Cc" not in {unicodedata.category(character) for character in once}


def test_only_the_text_columns_change_and_changes_are_counted(caplog):
    tables = {"train": table("t", "a\x00", "b", "ﬁ"), "test": table("s", " c\x00 ")}
    with caplog.at_level(logging.INFO, logger="jaxlm"):
        cleaned, counts = clean_tables(tables, ("text",), ALL)
    assert texts(cleaned["train"]) == ["a", "b", "fi"]
    assert texts(cleaned["test"]) == ["c"]
    assert [row["label"] for row in cleaned["train"].rows] == [" 0\x00", " 1\x00", " 2\x00"]
    assert counts["control_characters_changed"] == 2
    assert counts["unicode_changed"] == 1
    assert counts["whitespace_changed"] == 1
    assert "clean.control_characters: 2 texts changed" in caplog.text
    assert texts(tables["train"]) == ["a\x00", "b", "ﬁ"]  # the input is left alone


def test_off_by_default():
    tables = {"train": table("t", " a\x00", " a\x00"), "validation": table("v", "b")}
    cleaned, counts = clean_tables(tables, ("text",), CleanConfig())
    assert cleaned == tables
    assert counts == {"leaks_validation": 0}


def test_deduplication_is_of_train_by_all_text_columns_after_cleaning():
    rows = [("a", "x"), ("a", "y"), ("a ", "x"), ("b", "x"), ("a", "x")]
    train = Table("t", ("p", "q"), tuple({"p": p, "q": q} for p, q in rows), (1, 2, 3, 4, 5))
    held_out = Table("v", ("p", "q"), ({"p": "z", "q": "z"},) * 2, (1, 2))
    clean = CleanConfig(whitespace=True, deduplicate=True)
    cleaned, counts = clean_tables({"train": train, "validation": held_out}, ("p", "q"), clean)
    assert [(row["p"], row["q"]) for row in cleaned["train"].rows] == [("a", "x"), ("a", "y"), ("b", "x")]
    assert cleaned["train"].where(2) == "t, row 4"
    assert len(cleaned["validation"]) == 2
    assert counts["duplicates_dropped"] == 2


@pytest.mark.parametrize("leaks", ["ignore", "warn", "drop"])
def test_leaks(caplog, leaks):
    tables = {"train": table("t", "a", "b", "c", "d"), "validation": table("v", "b", "q"), "test": table("s", "c", "b")}
    with caplog.at_level(logging.INFO, logger="jaxlm"):
        cleaned, counts = clean_tables(tables, ("text",), CleanConfig(leaks=leaks))
    found = {"leaks_validation": 1, "leaks_test": 2}
    assert counts == {"ignore": {}, "warn": found, "drop": found | {"leaks_dropped": 2}}[leaks]
    assert texts(cleaned["train"]) == (["a", "d"] if leaks == "drop" else ["a", "b", "c", "d"])
    assert texts(cleaned["test"]) == ["c", "b"]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (0 if leaks == "ignore" else 2)
    if warnings:
        assert "1 of 4 training rows also stand in validation, the first: t, row 2 (line 3)" in warnings[0]


def test_train_equal_to_validation_has_its_own_warning(caplog):
    same = {"train": table("x.tsv", "a", "b"), "validation": table("x.tsv", "a", "b")}
    with caplog.at_level(logging.WARNING, logger="jaxlm"):
        _, counts = clean_tables(same, ("text",), CleanConfig())
    assert counts == {"leaks_validation": 2}
    assert "train (x.tsv) and validation (x.tsv) hold the same texts" in caplog.text
    with pytest.raises(UserError, match="leaves none"):
        clean_tables(same, ("text",), CleanConfig(leaks="drop"))


def test_values_that_are_no_strings_pass():
    train = Table("t", ("text",), ({"text": None}, {"text": ["a"]}, {"text": 3}), (1, 2, 3))
    cleaned, counts = clean_tables({"train": train}, ("text",), ALL.model_copy(update={"deduplicate": True}))
    assert cleaned["train"].rows == train.rows
    assert counts["whitespace_changed"] == 0


def test_labels_are_replaced_in_cells_lists_and_between_separators(caplog):
    caplog.set_level(logging.INFO)
    cells = ["Spam", "spam", ["Spam", "spam", "ham"], ["b", "b"], "x, Spam ,spam", 1, None, {"a": 1}]
    rows = tuple({"text": "Spam", "label": cell} for cell in cells)
    tables = {"train": Table("t", ("text", "label"), rows, tuple(range(1, 9)))}
    renamed, changed = replace_labels(tables, ("label",), {"Spam": "spam", "1": "one", "y": "z"})
    assert [row["label"] for row in renamed["train"].rows] == [
        "spam", "spam", ["spam", "ham"], ["b", "b"], "x, Spam ,spam", "one", None, {"a": 1},
    ]  # fmt: skip
    assert changed == 3 and texts(renamed["train"]) == ["Spam"] * 8 and "no row has the label 'y'" in caplog.text
    split, changed = replace_labels(tables, ("label",), {"Spam": "spam"}, ",")
    assert split["train"].rows[4]["label"] == "x,spam" and changed == 3
