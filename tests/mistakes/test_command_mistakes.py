"""Mistakes on the command line itself: commands of other programs, options in any order, marks as values."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.mistakes import words

from jaxlm.inference.evaluate import _of_the_file
from jaxlm.options import read_options


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["train", "--config", "x"], "there is no command 'train'; expected 'finetune' or 'pretrain'"),
        (["export", "runs/x", "y"], "expected 'convert export RUN_DIR HF_DIR'"),
        (["finetune", "--config", "x", "--epochs", "3"], "keys of the config are given without dashes, for instance"),
        (["finetune", "--config", "x", "a=1", "--dry-run", "b"], "unrecognized arguments: b"),
        (["push", "runs/x", "me/x", "seed=1"], "unrecognized arguments: seed=1"),
    ],
)
def test_what_is_no_command_or_option(given, expected, capsys):
    with pytest.raises(SystemExit) as end:
        read_options(given)
    assert end.value.code == 2 and expected in capsys.readouterr().err


def test_keys_may_stand_on_both_sides_of_an_option():
    options = read_options(["finetune", "--config", "x", "seed=1", "--dry-run", "task.text=Subject line", "name=b"])
    assert options.dry_run and options.overrides == ["seed=1", "task.text=Subject line", "name=b"]


@pytest.mark.parametrize("mark", ["|", ",", "#", "\\t"])
def test_marks_stand_for_themselves(mark, with_training_file):
    content = f"text{mark}label\ngood{mark}1\nbad{mark}0\n".replace("\\t", "\t")
    said = with_training_file("t.csv", content, f"data.train.separator={mark}", status=1)
    words(said, "2 different whole numbers")


def test_a_separator_of_no_characters(say, config):
    words(say("finetune", "--config", config, "task.label_separator=''"), "task.label_separator: expected text or null")


def test_a_column_in_other_letters(with_training_file):
    words(with_training_file("t.tsv", "TEXT\tlabel\ngood\t1\n"), "no column 'text'", "did you mean 'TEXT'?")


def test_a_file_of_an_encoding_that_it_is_not_in(with_training_file):
    content = "text,label\nschön,1\nübel,0\n"
    said = with_training_file("t.csv", content, more=", encoding: cp1252", status=1)
    words(said, "t.csv: read as cp1252, but all its letters are UTF-8 too", "data.train.encoding: utf-8")
    said = with_training_file("t.csv", content.encode("cp1252"), more=", encoding: cp1252", status=1)
    assert "UTF-8" not in said


def test_how_a_file_is_read_that_a_run_with_a_fraction_is_scored_on(tmp_path):
    """Messages name `data.validation`, whose rows such a run takes from `data.train`."""
    given = ["data.validation.format=conll", "data.validation.columns.0=a", "data.validation.limit=3", "seed=1"]
    for validation, expected in (
        ("{fraction: 0.2}", ["data.train.format=conll", "data.train.columns.0=a", *given[2:]]),
        ("{path: b.conll}", given),
    ):
        text = f"name: x\nmodel: {{init: y}}\ndata: {{train: {{path: a.conll}}, validation: {validation}}}\n"
        (tmp_path / "config.yaml").write_text(text)
        assert _of_the_file(str(tmp_path), given) == expected
    assert _of_the_file(str(Path("nowhere")), given) == given
