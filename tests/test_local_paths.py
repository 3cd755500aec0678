"""Paths of other machines are refused wherever a path is taken, by key, before anything is read or written."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.finetuning_runs import run, write_config

from jaxlm.config.loading import load_config
from jaxlm.data.sources.files import check_file, find_files
from jaxlm.errors import UserError
from jaxlm.hf.hub import find_model_dir
from jaxlm.inference.output import write_output
from jaxlm.inference.trained import run_config
from jaxlm.local_paths import check_local, problem
from jaxlm.run.run_dir import RunDir
from jaxlm.setup.tokenizer_training import train_to_directory
from jaxlm.tokenizer.config import TokenizerTrainingConfig

REMOTE = (
    "gs://bucket/x",
    "s3://bucket/x",
    "hdfs://host/x",
    "memory://x",
    "az://c/x",
    "https://host/x",
    "GS://b",
    "gs:/b/x",
)


@pytest.mark.parametrize("path", REMOTE)
def test_remote_paths(path):
    for given in (path, Path(path)):
        with pytest.raises(
            UserError, match=r"^--run: expected a path of this machine, found \S+: .*(mount|download it)"
        ):
            check_local(given, "--run")
    advice = "download it" if path.startswith("http") else "mount"
    with pytest.raises(UserError, match=advice):
        check_local(path, "--run")


@pytest.mark.parametrize("path", ["runs", "/a:b/c", "C:/x", "user/model", "-", "./gs", "a b", "data/*.jsonl", "x:y"])
def test_paths_of_this_machine(path):
    assert problem(path) is None and problem(Path(path)) is None


def test_file_urls_name_what_is_expected():
    assert problem("file:///data/x") == "expected a path without file://, found file:///data/x"


@pytest.mark.parametrize(
    "override",
    [
        "logging.directory=gs://b/runs",
        "data.train.path=s3://b/train.jsonl",
        "data.train.path=[a.txt, gs://b/train.jsonl]",
        "data.validation.data_dir=gs://b",
        "data.token_cache=gs://b/tokens",
        "model.init=gs://b/model",
        "model.tokenizer=s3://b/tokenizer",
    ],
)
def test_keys_of_a_config(tmp_path, override):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"override .*{key}(\.\d)?: expected a path of this machine, found"):
        load_config(write_config(tmp_path), [override])


def test_options_of_the_commands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path)
    for arguments, key in (
        (("finetune", "--config", "gs://b/c.yaml"), "--config"),
        (("finetune", "--config", config, "--plugin", "gs://b/p.py"), "--plugin"),
        (("finetune", "--config", config, "logging.directory=gs://b/runs"), "logging.directory"),
        (("evaluate", "--run", "gs://b/run"), "--run"),
        (("evaluate", "--run", "x", "--data", "s3://b/d.csv"), "--data"),
        (("predict", "--run", "s3://b/run", "--input", "-", "--output", "-"), "--run"),
        (("predict", "--run", "x", "--input", "gs://b/i.jsonl", "--output", "-"), "--input"),
        (("predict", "--run", "x", "--input", "-", "--output", "gs://b/o.jsonl"), "--output"),
        (("convert", "export", "x", "gs://b/y"), "convert"),
        (("train-tokenizer", "--type", "char", "--input", "a", "gs://b/t", "--output", "o"), "--input"),
        (("train-tokenizer", "--type", "char", "--input", "a", "--output", "gs://b/t"), "--output"),
        (("bench", "--model", "gs://b/m"), "--model"),
    ):
        assert run(*arguments) == 2, arguments
        said = capsys.readouterr().err
        assert f"{key}: expected a path of this machine" in said and "Traceback" not in said
    assert not [path for path in tmp_path.iterdir() if ":" in path.name]


def test_doors_of_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: RunDir.open(Path("gs://b/runs"), "name", restart=False),
        lambda: find_model_dir("gs://b/model", key="model.init"),
        lambda: find_files("s3://b/*.jsonl", "data.train.path"),
        lambda: check_file(Path("gs://b/x"), "--input"),
        lambda: run_config("gs://b/run"),
        lambda: write_output("gs://b/o.jsonl", []),
        lambda: train_to_directory(["a"], Path("gs://b/t"), TokenizerTrainingConfig()),
    ):
        with pytest.raises(UserError, match="expected a path of this machine"):
            call()
    assert not list(tmp_path.iterdir())
