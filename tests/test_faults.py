"""Inputs that went wrong in use: each gives what a user would expect, or one line that names the place."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.corpora import byte_tokenizer
from helpers.faults import write_faults
from helpers.finetuning_runs import run, write_config

from jaxlm.data.config import DataConfig, SourceConfig
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.sources.sources import load
from jaxlm.errors import UserError
from jaxlm.tasks import TASKS
from jaxlm.tasks.causal_lm import CausalLM, CausalLMConfig
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.records import Context, Request
from jaxlm.tokenizer.stand_in import word_tokenizer


@pytest.fixture(scope="module")
def faults(tmp_path_factory) -> Path:
    return write_faults(tmp_path_factory.mktemp("faults"))


def open_rows(
    path: Path, hf_config: Any = None, source: Any = None, **settings: Any
) -> tuple[Classification, RowDataset]:
    """The task and its training rows."""
    data = DataConfig.model_validate(
        {"train": {"path": str(path), **(source or {})}, **settings.pop("data", {}), "max_length": 16}
    )
    config = ClassificationConfig(**settings)
    sources = Classification.open(config, Request(data, ("train",), Path()))
    task = Classification.create(config, Context(data, word_tokenizer("abcd"), hf_config), sources)
    made = task.datasets(sources)["train"]
    assert isinstance(made, RowDataset)
    return task, made


def refused(path: Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        open_rows(path, **settings)
    message = str(caught.value)
    assert "\n" not in message and path.name in message
    return message


def labels(dataset: RowDataset) -> list[Any]:
    return [np.asarray(label).tolist() for label in dataset.split.labels]


def test_multi_hot_lists_are_read_by_position(faults, caplog):
    caplog.set_level(logging.INFO)
    task, rows = open_rows(faults / "labels_multi_hot.jsonl")
    assert task.label_names == ("0", "1", "2") and "multi-hot" in caplog.text
    assert labels(rows) == [[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]
    named, _ = open_rows(faults / "labels_multi_hot.jsonl", labels=("x", "y", "z"))
    assert named.label_names == ("x", "y", "z") and dict(named.labels.counts) == {"x": 2, "y": 2, "z": 2}


def test_enumerations_are_classes(faults):
    task, rows = open_rows(faults / "labels_enumeration.csv")
    assert task.problem == "multiclass" and task.label_names == ("1", "2", "3") and labels(rows) == [0, 1, 2, 0]


def test_decimals_are_a_regression(faults, caplog):
    caplog.set_level(logging.INFO)
    task, rows = open_rows(faults / "pq_decimal.parquet")
    assert task.problem == "regression" and labels(rows) == [3.5, 1.25]
    assert "2 of 2 labels are fractional numbers" in caplog.text


def test_nan_is_a_word_among_words(faults):
    task, _ = open_rows(faults / "labels_iso639_nan.csv")
    assert task.problem == "multiclass" and "nan" in task.label_names and len(task.label_names) == 4


def test_double_dashes_are_words(faults):
    task, rows = open_rows(faults / "labels_double_dash.csv")
    assert set(task.label_names) == {"--1", "+1"} and len(set(labels(rows)[:2])) == 2


def test_a_separator_at_the_end_makes_no_label(faults):
    path = faults / "labels_trailing_separator.csv"
    task, rows = open_rows(path, label_separator=",")
    assert task.label_names == ("p", "q", "r")
    assert labels(rows) == [[1, 1, 0], [0, 0, 0], [0, 1, 1], [0, 1, 0]]


def test_labels_of_a_checkpoint_are_matched_without_case(faults, caplog):
    caplog.set_level(logging.INFO)
    head = {"id2label": {"0": "CONTRADICTION", "1": "NEUTRAL", "2": "ENTAILMENT"}}
    task, rows = open_rows(faults / "nli_rows.jsonl", head)
    assert task.label_names == ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    kinds = {"contradiction": 0, "neutral": 1, "entailment": 2}
    assert labels(rows) == [kinds[row["label"]] for row in rows.split.table.rows]
    assert "'entailment' is 'ENTAILMENT'" in caplog.text


def test_a_list_is_no_text(faults):
    assert "row 1: text: expected a text, found a list" in refused(faults / "text_is_token_list.jsonl")


def test_null_is_no_beginning_of_a_text(faults):
    data = DataConfig(on_bad_row="skip")
    task = CausalLM.create(CausalLMConfig(), Context(data, word_tokenizer("abcd")), None)
    made = task.examples(load(SourceConfig(path=str(faults / "gen_null.jsonl")), key="the input", split="test"),
                         labelled=False, key="the input")  # fmt: skip
    assert not made.examples and "row 1: text is missing; expected a text" in made.errors[0]


def test_a_key_that_stands_twice(faults):
    assert "row 1: not readable JSON: key 'label' stands twice" in refused(faults / "jsonl_dup.jsonl")


def test_csv_as_other_programs_write_it(faults, caplog):
    caplog.set_level(logging.INFO)
    _, rows = open_rows(faults / "csv_index.csv")
    assert rows.split.table.columns == ("text", "label") and len(rows.split.table) == 2
    assert "the first column has no name" in caplog.text
    named = {"columns": ["i", "text", "label"]}
    assert "the first line holds the names" in refused(faults / "csv_index.csv", source=named)
    assert 'separator: ";"' in refused(faults / "csv_semicolon.csv")
    _, rows = open_rows(faults / "csv_semicolon.csv", source={"separator": ";"})
    assert [row["text"] for row in rows.split.table.rows] == ["a b", "c d"]
    assert "row 1 (line 2): a carriage return" in refused(faults / "csv_cr_in_field.csv")


def test_a_json_list_holds_rows(faults):
    _, rows = open_rows(faults / "json_list.json")
    assert [row["text"] for row in rows.split.table.rows] == ["a", "b"] and rows.split.table.lines == (1, 2)


@pytest.mark.parametrize("kind", ["translation", "summarization", "text_to_text"])
def test_what_writing_tasks_make_of_them(kind, faults):
    """`label` is what is written: words, numbers and empty cells are as they stand in the file."""

    def written(name: str, **source: Any) -> list[Any]:
        cls: Any = TASKS[kind]
        data = DataConfig.model_validate({"train": {"path": str(faults / name), **source}, "max_length": 32})
        config = cls.Config.model_validate({"kind": kind, "source": "text", "target": "label"})
        sources = cls.open(config, Request(data, ("train",), Path()))
        context = Context(data, byte_tokenizer(bos=False), head="seq2seq_lm")
        return cls.create(config, context, sources).datasets(sources)["train"].split.labels

    assert written("labels_enumeration.csv") == [["1."], ["2."], ["3."], ["1."]]
    assert written("pq_decimal.parquet") == [["3.50"], ["1.25"]]
    assert written("labels_iso639_nan.csv")[2] == ["nan"] and written("labels_double_dash.csv")[:2] == [["--1"], ["+1"]]
    assert written("csv_index.csv") == written("csv_semicolon.csv", separator=";") == written("json_list.json")
    assert written("nli_rows.jsonl")[0] == ["contradiction"]
    assert written("text_is_token_list.jsonl")[:2] == [["x"], ["y"]]  # its lists are sentences of one text
    for name, source, problem in (
        ("labels_multi_hot.jsonl", {}, "row 1: label: expected a text or a list of texts, found a list of numbers"),
        ("labels_trailing_separator.csv", {}, "row 2 (line 3): label is empty; expected a text"),
        ("jsonl_dup.jsonl", {}, "row 1: not readable JSON: key 'label' stands twice"),
        ("gen_null.jsonl", {}, "no column 'label'"),
        ("csv_semicolon.csv", {}, 'separator: ";"'),
        ("csv_index.csv", {"columns": ["i", "text", "label"]}, "the first line holds the names"),
        ("csv_cr_in_field.csv", {}, "row 1 (line 2): a carriage return"),
    ):
        with pytest.raises(UserError) as raised:
            written(name, **source)
        assert problem in str(raised.value) and name in str(raised.value)


def test_an_undefined_metric_ends_no_run(faults, tmp_path, capsys):
    """It is said once; the run goes its full length, and its last checkpoint is the best."""
    path = write_config(
        tmp_path,
        data={
            "train": {"path": str(faults / "metric_undefined_train.csv")},
            "validation": {"path": str(faults / "metric_undefined_val.csv")},
            "test": None,
        },
        train={
            "batch_size": 2, "epochs": 3, "eval_every": 1, "metric": "matthews", "early_stopping": {"patience": 1}
        },
    )  # fmt: skip
    assert run("finetune", "--config", path) == 0
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())
    assert summary["steps"] == summary["best_step"] == 6
    assert summary["label_counts"] == {"x": 2, "y": 2} and summary["problem_because"] == "2 different labels"
    said = capsys.readouterr().err
    assert said.count("matthews is not defined on the validation split") == 1
    assert "binary (2 different labels); labels in order, from the training rows: x 2, y 2" in said.replace("\n", " ")
