"""`jaxlm check`: what it finds in rows that have everything wrong with them, on a page, as JSON and on the terminal."""

from __future__ import annotations

import json

import pytest
from helpers.finetuning_runs import run, write_config, write_jsonl

FIRST = "the quick brown fox jumps over the lazy dog and runs away"
TRAIN = [
    {"text": FIRST, "label": "pos"},
    {"text": "one of its own kind with words that nobody else has", "label": "neg"},
    {"text": FIRST, "label": "neg"},  # equal, and contradicts
    {"text": FIRST.replace("away", "home"), "label": "pos"},  # nearly equal
    {"text": " ".join(f"w{i}" for i in range(200)), "label": "Pos "},  # long; a variant of a label
    {"text": "", "label": "neg"},  # unusable
    *({"text": f"number {i} is like none of the {i * i} others", "label": "neg"} for i in range(6)),
]
VALIDATION = [
    {"text": FIRST, "label": "pos"},  # leaks
    {"text": "One of its own kind, with words that nobody else knows", "label": "neg"},  # nearly
    {"text": "something that stands here alone", "label": "neg"},
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checked")
    write_jsonl(folder / "train.jsonl", TRAIN)
    write_jsonl(folder / "validation.jsonl", VALIDATION)
    return write_config(folder, data={"test": None, "max_length": 48})


def test_findings_are_counted_and_placed(config, capsys):
    page, values = config.parent / "check.html", config.parent / "check.json"
    arguments = ["check", "--config", config, "--html", page, "--json", values]
    assert run(*arguments, "data.on_bad_row=skip") == 0
    found = json.loads(values.read_text())
    train, said = found["splits"]["train"], capsys.readouterr().out
    assert train["rows"] == 12 and train["labels"] == {"neg": 9, "pos": 2, "Pos ": 1} and not found["refused"]
    assert train["unusable"]["rows"] == 1 and "row 6: text is empty" in train["unusable"]["first"][0]
    assert train["equal_texts"]["rows"] == 1 and "train.jsonl, row 3, as " in train["equal_texts"]["first"][0]
    assert train["equal_texts_with_other_labels"]["rows"] == 2
    assert train["nearly_equal_texts"]["rows"] == 2
    lengths = train["lengths"]["text"]
    assert lengths["unit"] == "tokens" and lengths["longer_rows"] == 1 and lengths["longest"] > 200
    assert sum(one["rows"] for one in lengths["histogram"]) == 11
    [leak] = found["leaks"]
    assert (leak["equal"]["rows"], leak["equal_or_nearly"]["rows"]) == (2, 4)
    assert found["labels_that_differ_by_case_or_spaces"] == [["pos", "Pos "]]
    assert "train.jsonl, row 1: the quick brown fox" in train["equal_texts"]["first"][0]
    assert f"{config.parent}/validation.jsonl, row 1: the quick" in leak["equal"]["first"][0]
    assert "longer than the 48 of data.max_length: 1 row (9.1%)" in said and "leaks: the texts of 2 rows" in said
    assert all(words in page.read_text() for words in ("Leaks between splits", "Rows to look at", "train.jsonl, row 3"))


def test_what_a_run_refuses_is_status_2_with_the_page_all_the_same(config, capsys):
    page = config.parent / "refused.html"
    assert run("check", "--config", config, "--html", page) == 2
    said = capsys.readouterr().err
    assert "row 6: text is empty" in said and "data.on_bad_row=skip leaves such rows out: 1 in all" in said
    assert "A run refuses this" in page.read_text()
    assert run("check", "--config", config, "model={init: no/such/model}", "data.on_bad_row=skip") == 2
    captured = capsys.readouterr()
    assert "no/such/model" in captured.err and "longest 200 words" in captured.out
    assert run("check", "--config", config, "task.text=txt") == 2
    assert "no column 'txt'" in capsys.readouterr().err
