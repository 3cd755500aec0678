"""Multiple choice: its loss against a loop, rows as people write them, and a run by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.choice_runs import write_choices
from helpers.corpora import byte_tokenizer
from helpers.finetuning_runs import read_jsonl, run, write_jsonl

from jaxlm.config.loading import load_config
from jaxlm.data.config import DataConfig
from jaxlm.data.examples.tables import TableSources
from jaxlm.data.sources.table import Table
from jaxlm.errors import UserError
from jaxlm.hf.convert import inspect
from jaxlm.inference.trained import open_trained
from jaxlm.objectives.multiple_choice import multiple_choice_loss
from jaxlm.tasks.multiple_choice import MultipleChoice, MultipleChoiceConfig
from jaxlm.tasks.records import Context


def test_loss_is_a_softmax_over_each_questions_candidates():
    rng = np.random.default_rng(0)
    groups = np.asarray([[4, 7, 4, -1], [7, 7, 9, 4], [9, -1, -1, -1]], np.int32)
    labels = np.asarray([[0, 0, 1, 1], [1, 0, 0, 0], [1, 0, 0, 0]], np.int32)
    weights = (groups >= 0).astype(np.float32)
    scores = rng.normal(size=(3, 4, 1)).astype(np.float32)
    batch = {"groups": groups, "labels": labels, "weights": weights}
    expected = 0.0
    for group in (4, 7, 9):
        inside = groups == group
        chances = jax.nn.softmax(scores[..., 0][inside])
        expected -= float(np.log(chances[labels[inside].argmax()]))
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    total, count = multiple_choice_loss(jnp.asarray(scores), batch)
    assert float(total) == pytest.approx(expected, rel=1e-5) and float(count) == 3
    gradient = jax.grad(lambda s: multiple_choice_loss(s, batch)[0])(jnp.asarray(scores))[..., 0]
    assert np.isfinite(gradient).all() and (np.asarray(gradient)[groups < 0] == 0).all()
    for group in (4, 7, 9):
        assert float(gradient[groups == group].sum()) == pytest.approx(0, abs=1e-5)


def make(**settings: Any) -> MultipleChoice:
    context = Context(DataConfig(max_length=32), byte_tokenizer())
    config = MultipleChoiceConfig(**settings)
    made = MultipleChoice.create(config, context, None)
    return made if made.num_choices else MultipleChoice(config, context, 3)


def table(*rows: dict[str, Any]) -> Table:
    return Table("t.jsonl", tuple(rows[0]), rows, tuple(range(1, len(rows) + 1)))


@pytest.mark.parametrize(
    ("label", "expected"), [(1, 1), ("1", 1), ("B", 1), ("b", 1), (0, 0), ("two", 1), (1.0, 1), ("1.0", 1)]
)
def test_candidates_in_columns(label, expected):
    made = make(choices=("one", "two"))
    found = made.examples(table({"question": "q", "one": "x", "two": "y", "label": label}), labelled=True, key="x")
    assert found.labels == [expected]
    assert [int(e.arrays["labels"]) for e in found.examples] == [int(i == expected) for i in range(2)]
    assert [e.group for e in found.examples] == [0, 0]
    assert made.prediction({}, np.asarray([0.0, 1.0]))["label"] == "two"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"question": "q", "choices": ["a", "b"], "label": 0}, "choices: expected 3 candidates, as in other"),
        ({"question": "q", "choices": ["a"], "label": 0}, "at least two candidates"),
        ({"question": "q", "choices": ["a", 1, "c"], "label": 0}, "choices: expected a list of texts, found"),
        ({"question": "q", "choices": ["a", " ", "c"], "label": 0}, "choices: candidate 1 is blank; expected a text"),
        ({"question": "q", "choices": ["a", "b", "c"], "label": 3}, "label=3: expected the right candidate, 0 to 2"),
        ({"question": "q", "choices": ["a", "b", "c"], "label": None}, "label=None: expected the right candidate"),
        ({"question": "q", "choices": ["a", "b", "c"], "label": True}, "label=True: expected the right candidate"),
        ({"question": None, "choices": ["a", "b", "c"], "label": 1}, "question is missing"),
    ],
)  # fmt: skip
def test_bad_rows(row, problem):
    with pytest.raises(UserError, match=problem) as caught:
        make().examples(table(row), labelled=True, key="x")
    assert "t.jsonl, row 1" in str(caught.value) and "(data.on_bad_row=skip leaves it out)" in str(caught.value)
    if "label" not in problem and "blank" not in problem:
        with pytest.raises(UserError) as caught:
            make().examples(table(row), labelled=False, key="x")
        assert "on_bad_row" not in str(caught.value)


def test_rows_that_have_no_answer_are_not_said_to_be_skipped(caplog):
    """`jaxlm predict` writes an error into their lines, and says how many."""
    rows = table(
        {"question": None, "choices": ["a", "b", "c"], "label": 1}, {"question": "q", "choices": ["a"], "label": 0}
    )
    context = Context(DataConfig(on_bad_row="skip"), byte_tokenizer())
    made = MultipleChoice(MultipleChoiceConfig(), context, 3)
    assert len(made.examples(rows, labelled=False, key="the input").errors) == 2 and "skipped" not in caplog.text
    made.examples(rows, labelled=True, key="data.train")
    assert "data.train (t.jsonl): 2 of 2 rows are bad and were skipped" in caplog.text


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match=r"task\.choices: expected at least two columns"):
        make(choices=("one",))
    rows = TableSources({"train": table({"question": "q", "choices": ["x", "y"], "answer": 0})}, {}, ())
    with pytest.raises(UserError, match=r"no column 'label', which task\.label asks for"):
        MultipleChoice.create(MultipleChoiceConfig(), Context(DataConfig(), byte_tokenizer()), rows)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    path = write_choices(folder, train={"epochs": 6, "batch_size": 12}, optimizer={"learning_rate": 5e-3})
    assert run("finetune", "--config", path) == 0
    return folder


@pytest.mark.slow
def test_a_run_from_training_to_answers(finished, tmp_path, capsys):
    made = finished / "runs/tiny"
    summary = json.loads((made / "summary.json").read_text())
    assert summary["throughput"]["examples"] == 6 * 120 * 3 and summary["metric"] == "accuracy"
    assert f"multiple choice, {summary['model']['parameters']:,} parameters" in inspect(str(made))
    assert run("evaluate", "--run", made, "--split", "test") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(summary["scores"]["test"], abs=1e-5)
    asked = write_jsonl(tmp_path / "in.jsonl", [{"question": "the sun", "choices": ["sun", "rain", "star"]}])
    assert run("predict", "--run", made, "--input", asked, "--output", tmp_path / "out.jsonl") == 0
    [answer] = read_jsonl(tmp_path / "out.jsonl")
    assert sum(answer["prediction"]["scores"]) == pytest.approx(1) and answer["prediction"]["label"] in (0, 1, 2)


def test_packing_changes_no_score(finished):
    made, scores = finished / "runs/tiny", []
    for packing in ("true", "false"):
        trained = open_trained(str(made), load_config(made / "config.yaml", [f"data.packing={packing}"]), ("test",))
        evaluation = trained.evaluator.evaluate(trained.params, {}, trained.setup.datasets["test"])
        scores.append(np.stack([answer.kept for answer in evaluation.answers]))
    np.testing.assert_allclose(*scores, atol=1e-5, rtol=0)


def test_tokens_cannot_count_a_batch_of_groups(finished, capsys):
    path = finished / "config.yaml"
    assert run("finetune", "--config", path, "name=other", "train.batch_tokens=200") == 2
    assert "train.batch_tokens: examples of this task belong together" in capsys.readouterr().err
