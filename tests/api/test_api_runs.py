"""`jaxlm.finetune` and `jaxlm.evaluate`: a run and its summary, as in a notebook."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import logging
from types import SimpleNamespace

import pytest
from helpers.finetuning_runs import read_jsonl, run, write_config

import jaxlm
from jaxlm.api import entry
from jaxlm.errors import UserError


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run in Python, its config, and what was said meanwhile."""
    train = {"epochs": 2, "eval_every": 1, "early_stopping": {"patience": 2}}
    path = write_config(
        tmp_path_factory.mktemp("run"),
        train=train, data={"test": None, "max_shapes": 1}, optimizer={"learning_rate": 1e-8},
    )  # fmt: skip
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(logging.getLogger("jaxlm"), "handlers", [])
        patch.setattr(logging.getLogger("jaxlm"), "level", logging.NOTSET)
        summary = jaxlm.finetune(path, train={"epochs": 1})
        logging.getLogger("jaxlm").handlers.clear()
    return SimpleNamespace(summary=summary, config=path, said=said.getvalue())


def test_the_summary(finished):
    summary = finished.summary
    assert summary.name == "tiny" and summary.path.is_dir() and summary.report.is_file()
    written = json.loads((summary.path / "summary.json").read_text())
    assert summary.metrics == written["scores"] and summary.best_step == written["best_step"] == 1
    assert "accuracy" in repr(summary) and str(summary.path) in repr(summary)


def test_what_a_run_says(finished):
    """While it compiles, what is learned from what, why it ends before its last step, the best step, where it lies."""
    said, path = finished.said, finished.summary.path
    assert "task: binary (2 different labels); labels in order, from the training rows: neg 32, pos 32" in said
    assert "task.kind=classification; train: 64 rows; validation: 21 rows" in said
    assert said.count("compiling the step (shape ") == 1 and "step 2/4  loss" in said
    assert "early stopping ends the run after step 3 of 4: accuracy has not improved in 2 evaluations since" in said
    assert "step 1/4  validation (best): accuracy" in said and "step 4/4" not in said
    assert said.rstrip().endswith(f"{path}: open report.html; the model in HF format is {path / 'model'}")
    [best] = [row for row in read_jsonl(path / "metrics.jsonl") if row.get("split") == "validation (best)"]
    assert best["step"] == 1
    assert ">finished<" in (path / "report.html").read_text()


def test_a_finished_run_is_returned_and_stands_for_its_path(finished, capsys):
    again = jaxlm.finetune(finished.config, **{"train.epochs": 1})
    assert again.metrics == finished.summary.metrics and again.path == finished.summary.path
    assert run("finetune", "--config", finished.config, "train.epochs=1") == 0
    assert capsys.readouterr().out.strip() == again.lines()  # the command prints what the summary says
    assert jaxlm.evaluate(again) == pytest.approx(finished.summary.metrics["validation"], abs=1e-6)
    with pytest.raises(UserError, match=r"the run's config has no data\.test; it has train, validation"):
        jaxlm.evaluate(again, split="test")


def test_rows_are_scored_as_a_file_of_them(finished):
    rows = read_jsonl(finished.config.parent / "validation.jsonl")
    assert jaxlm.evaluate(finished.summary, data=iter(rows)) == pytest.approx(
        finished.summary.metrics["validation"], abs=1e-6
    )
    result = jaxlm.evaluate(finished.summary, data=rows[:6], slices=["label"], resamples=0)
    assert set(result["slices"]["label"]["groups"]) == {"neg", "pos"}
    assert (finished.summary.path / "slices/rows.json").is_file()


GOOD = {"text": "good", "label": "pos"}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"data": []}, "data: no rows; expected at least one"),
        ({"data": ["good film"]}, "data, row 1: expected a mapping of columns to values, found str"),
        ({"data": {"text": "good"}}, "data: expected a file, or a list of rows (mappings), found dict"),
        ({"data": [{"text": "good"}]}, "data: no column 'label'"),
        ({"data": [GOOD, {"text": "good", "label": "so"}]}, "data, row 2: label='so' is not one of"),
        ({"data": [GOOD], "split": "test"}, "expected split or data, not both"),
        ({"data": [GOOD], "data.validation.limit": 3}, "with data, the settings of no split"),
        ({"data": "vlidation.jsonl"}, "data: no file vlidation.jsonl; did you mean 'validation.jsonl'?"),
        ({"split": "test"}, "split test: the run's config has no data.test"),
    ],
    ids=["none", "texts", "one row", "no label", "another label", "split", "settings", "no file", "no split"],
)  # fmt: skip
def test_mistakes_are_told_by_the_names_of_arguments(arguments, problem, finished, monkeypatch):
    monkeypatch.chdir(finished.config.parent)
    with pytest.raises(UserError) as raised:
        inspect.unwrap(jaxlm.evaluate)(finished.summary, **arguments)  # without the tests' check of types
    assert problem in str(raised.value) and "--" not in str(raised.value)


def test_mistakes_are_exceptions(finished, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="train.epochs"):
        jaxlm.finetune(finished.config, train={"epochs": 3})
    with pytest.raises(UserError, match=r"config\.yaml: task\.kind=classification is for `jaxlm finetune`"):
        jaxlm.pretrain(finished.config)
    with pytest.raises(UserError, match="the config: task.kind=masked_lm is for `jaxlm pretrain`"):
        jaxlm.finetune({"name": "x", "task": {"kind": "masked_lm"}})
    monkeypatch.setattr(entry.processes, "is_multiprocess", lambda: True)
    with pytest.raises(UserError, match="start `jaxlm finetune` on each"):
        jaxlm.finetune(finished.config)


def test_a_backend_that_is_not_there(monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("Unable to initialize backend 'tpu': INTERNAL: no chip (set JAX_PLATFORMS='' to choose)")

    monkeypatch.setattr("jaxlm.api.scoring.evaluate_run", fail)
    with pytest.raises(UserError, match="the backend tpu cannot be used here"):
        jaxlm.evaluate("runs/x")


def test_the_summary_of_several_runs(finished):
    values = {"repeats": "seeds", "best": None, "name": "s", "scores": {}, "runs": [], "sd": {}, "metric": "accuracy"}
    summary = jaxlm.RunSummary(finished.summary.path.parent, values)
    assert summary.best_step is None
    with pytest.raises(UserError, match="none of its runs is the best"):
        summary.model  # noqa: B018
    best = jaxlm.RunSummary(finished.summary.path.parent, {**values, "best": "tiny"}).model
    assert best.predict("good")["label"] in ("neg", "pos")
