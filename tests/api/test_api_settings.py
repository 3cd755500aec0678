"""Configs and overrides as Python gives them, and what is wrong with them; `import jaxlm` alone imports nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.finetuning_runs import write_config
from helpers.paths import REPOSITORY

import jaxlm
from jaxlm.api.settings import as_overrides, read_config
from jaxlm.config.loading import load_config
from jaxlm.errors import UserError


def test_importing_the_package_imports_no_other_and_names_are_known():
    script = "import sys, jaxlm; print(sorted(n for n in sys.modules if n.split('.')[0] in %r)); print(dir(jaxlm))"
    heavy = ("jaxlm", "jax", "numpy", "flax", "yaml", "pydantic", "rich", "optax")
    shown = subprocess.run([sys.executable, "-c", script % (heavy,)], capture_output=True, text=True, cwd=REPOSITORY)
    loaded, names = map(ast.literal_eval, shown.stdout.splitlines())
    assert loaded == ["jaxlm"]
    assert set(jaxlm.__all__) <= set(names)
    assert all(getattr(jaxlm, name) is not None for name in jaxlm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'finetone'"):
        jaxlm.finetone  # noqa: B018
    tree = ast.parse((REPOSITORY / "jaxlm/__init__.py").read_text())
    [seen] = [node for node in tree.body if isinstance(node, ast.If)]  # by type checkers
    assert {alias.asname for node in ast.walk(seen) if isinstance(node, ast.ImportFrom) for alias in node.names} == (
        set(jaxlm.__all__) - {"__version__"}
    )


def test_overrides_are_those_of_the_command_line(tmp_path):
    path = write_config(tmp_path)
    typed = load_config(
        path,
        ["train.epochs=1", "optimizer.learning_rate=1e-5", "data.train={path: x.csv, separator: ;}", "name=5",
         "data.validation=null", "task.labels=[a, 'true']", "logging.directory=there"],
    )  # fmt: skip
    given = read_config(
        path,
        {
            "train": {"epochs": 1},
            "optimizer": {"learning_rate": np.float64(1e-5)},
            "data.train": {"path": Path("x.csv"), "separator": ";"},
            "name": "5",
            "data": {"validation": None},
            "task": {"labels": ("a", "true")},
            "logging": {"directory": Path("there")},
        },
    )
    assert given == typed
    assert read_config(typed, {}) is typed and read_config(str(path), {}) == load_config(path)
    assert read_config(typed, {"seed": 3}).seed == 3
    assert read_config(typed.model_dump(), {"train": {"epochs": 2}}).train.epochs == 2
    assert as_overrides({"train": {}, "task.labels": ["é", "a: b"]}) == ["train={}", "task.labels=[é, 'a: b']"]


@pytest.mark.parametrize(
    ("config", "overrides", "problem"),
    [
        ("no.yaml", {}, "no.yaml: no such config file"),
        ({}, {}, "the config: name is missing"),
        ({"name": "x", "optimizer": {"lr": 1}}, {}, "the config: unknown key optimizer.lr; did you mean"),
        ({"name": "x"}, {"trian": {"epochs": 1}}, "'trian.epochs=1': unknown key trian; did you mean train"),
        ({"name": "x"}, {"train": {"epochs": "1"}}, "train.epochs: expected number > 0 or null, found \"1\""),
        ({"name": "x"}, {"train.epochs": float("nan")}, "train.epochs"),
        ({"name": "x"}, {"task": {"labels": [{1}]}}, "task.labels: expected texts, .*; found set"),
        ({"name": "x", "task": object()}, {}, "the config: expected texts, .*; found object"),
        ("s3://bucket/x.yaml", {}, "the config: expected a path of this machine"),
    ],
)  # fmt: skip
def test_mistakes(config, overrides, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=problem):
        read_config(config, overrides)
