"""Mistakes in a config: keys, YAML, values, names, files that are none.

Each is one message with status 2 that names the line or key and says what to do. More of the same: tests/config.
"""

from __future__ import annotations

import pytest
from helpers.mistakes import READY, words

from jaxlm.run.run_dir import RunDir

OVERRIDES = [
    ("optimizer.lr=1e-5", "unknown key optimizer.lr; did you mean optimizer.learning_rate?"),
    ("learning_rate=1e-5", "unknown key learning_rate; did you mean optimizer.learning_rate?"),
    ("data.batch_size=8", "unknown key data.batch_size; did you mean train.batch_size?"),
    ("num_train_epochs=3", "did you mean train.epochs?"),
    ("per_device_train_batch_size=8", "did you mean train.batch_size (of all devices together)?"),
    ("train.evaluation_strategy=epoch", "did you mean train.eval_every?"),
    ("output_dir=out", "did you mean logging.directory (and name)?"),
    ('optimizer.learning_rate="1e-5"', "optimizer.learning_rate: expected number > 0, found \"1e-5\""),
    ("train.steps=0", "train.steps: expected integer > 0 or null, found 0"),
    ("optimizer.learning_rate=-1", "optimizer.learning_rate: expected number > 0, found -1"),
    ("train.batch_size=0", "train.batch_size: expected integer > 0, found 0"),
    ("name=a/b", "name: expected letters from a to z, digits, `.`, `_` and `-`, a letter or digit first; found"),
    ("name=../x", "name: expected letters from a to z, digits, `.`, `_` and `-`, a letter or digit first; found"),
    ("name=my run", "name: expected letters from a to z, digits, `.`, `_` and `-`, a letter or digit first; found"),
    ("data.train.path=https://x.org/t.csv", "found https://x.org/t.csv: download it first, and name the file"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "expected"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_overrides(override, expected, say, config):
    words(say("finetune", "--config", config, override), f"override '{override}'", expected)


FILES = [
    ("name: x\noptimizer:\n  lr: 3\n", "c.yaml:3: unknown key optimizer.lr; did you mean optimizer.learning_rate?"),
    ("name: x\ntrain:\n  epochs: 1\n batch_size: 3\n",
     "c.yaml:4: not valid YAML: column 2, in the line ' batch_size: 3': the line is indented otherwise"),
    ("name: x\ntrain:\n  epochs: 1\n    batch_size: 3\n", "c.yaml:4: not valid YAML: column 15, in the line"),
    ("name: x\ntrain:\n\tepochs: 1\n", "c.yaml:3: not valid YAML: column 1, in the line '\\tepochs: 1': a tab; YAML"),
    ("name:base\ntrain:\n  epochs: 1\n", "c.yaml:1: not valid YAML: column 5, in the line 'name:base': expected a"),
    ("name:base\n", "c.yaml:1: expected a space after the colon of a key, found \"name:base\""),
    ("name: x\nseed: 1\nname: y\n", "re:c.yaml:3: name stands twice, first at .*c.yaml:1"),
    ("", "c.yaml: the file is empty; expected a mapping"),
    ("- a\n- b\n", "c.yaml:1: expected a mapping of keys to values, found [\"a\", \"b\"]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FILES)
def test_files(text, expected, say, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    words(say("finetune", "--config", tmp_path / "c.yaml"), expected)


def test_a_missing_file_and_a_folder(say, config, tmp_path):
    said = say("finetune", "--config", config.with_name("confg.yaml"))
    words(said, "no such config file; did you mean", "config.yaml'")
    words(say("finetune", "--config", "configs/my.yaml"), "there is no folder configs either", str(tmp_path / "cwd"))
    words(say("finetune", "--config", config.parent), "expected a YAML file, found a folder; it holds config.yaml")


def test_numbers_as_they_are_written(say, config):
    said = say("finetune", "--config", config, "--dry-run", "optimizer.learning_rate=1e-5", status=1)
    words(said, READY)


@pytest.mark.parametrize("dry", [("--dry-run",), ()], ids=["dry-run", "run"])
def test_what_needs_a_validation_split(dry, say, config):
    command = ("finetune", "--config", config, *dry, "data.validation=null")
    words(say(*command, "train.early_stopping={patience: 2}"), "train.early_stopping: expected data.validation")
    words(say(*command, "train.metric=accuracy"), "train.metric: expected data.validation")


def test_an_unknown_metric(say, config, monkeypatch):
    """The list stands in the message, also of a dry run."""
    monkeypatch.setattr("jaxlm.training.loop.make_plan", lambda _setup: None)
    for dry in (("--dry-run",), ()):
        said = say("finetune", "--config", config, *dry, "train.metric=acuracy")
        words(said, "train.metric=acuracy: expected one of accuracy, loss,", "did you mean 'accuracy'?")


def test_a_place_where_no_run_can_be(say, config, tmp_path):
    """A file in its place, also for a dry run, which writes nothing."""
    (tmp_path / "file").write_text("")
    for dry in (("--dry-run",), ()):
        said = say("finetune", "--config", config, *dry, f"logging.directory={tmp_path}/file/runs")
        words(said, "a file stands where the run directory", "logging.directory=DIR or name=NAME")
    said = say("finetune", "--config", config, "--dry-run", f"logging.directory={tmp_path}/new", status=1)
    assert READY in said and not (tmp_path / "new/tiny").exists()


def test_two_runs_at_once(say, config, tmp_path):
    with RunDir.open(tmp_path / "runs", "tiny", restart=False).lock():
        said = say("finetune", "--config", config, f"logging.directory={tmp_path}/runs")
    words(said, f"{tmp_path}/runs/tiny", "is working on this run", "name=")


def test_steps_over_a_config_with_epochs(say, config):
    words(say("finetune", "--config", config, "train.steps=5"), "train.steps", "train.epochs=null")


def test_a_family_beside_a_checkpoint(say, config, classifier):
    said = say("finetune", "--config", config, f"model={{family: roberta, init: {classifier}}}")
    words(said, "model.family")


def test_a_scratch_baseline_of_a_run_from_scratch(say, config):
    words(say("finetune", "--config", config, "--dry-run", "train.scratch_baseline=true"), "expected model.init")


def test_a_kernel_that_the_device_lacks(say, config):
    said = say("finetune", "--config", config, "--dry-run", "model.attention=cudnn")
    words(said, "model.attention=cudnn: cuDNN is of GPUs, and this is a cpu: set model.attention=auto")
