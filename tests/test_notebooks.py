"""notebooks/: their cells name what there is, their configs are whole, and they hold the outputs of a run."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import pytest
from helpers.paths import REPOSITORY

import jaxlm
from jaxlm.api.settings import read_config

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


def code_cells(path: Any) -> list[dict[str, Any]]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [{**cell, "source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]


def is_run(cell: dict[str, Any]) -> bool:
    return "not-run" not in cell["metadata"].get("tags", [])


class Answers:
    """Stands for a model: the same answer to every row."""

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        return [{"label": "a", "scores": {"a": 1.0}, "entities": []} for _ in rows]


class Finished:
    """Stands for a finished run."""

    metrics: Any = defaultdict(lambda: defaultdict(float))
    best_step = 1
    model = Answers()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_cells_fit_the_library(path, monkeypatch, capsys):
    """Their code runs with a library that checks configs and trains nothing."""
    configs = []

    def finetune(config: Any, **overrides: Any) -> Finished:
        configs.append(read_config(config, overrides))
        return Finished()

    monkeypatch.setattr(jaxlm, "finetune", finetune)
    monkeypatch.setattr(jaxlm, "load", lambda source: Answers())
    names: dict[str, Any] = {}
    for cell in code_cells(path):
        if '"pip"' not in cell["source"]:
            exec(compile(cell["source"], path.name, "exec"), names)
    assert {config.task.kind for config in configs} == {"classification", "tagging"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_outputs_are_those_of_a_run(path):
    """scripts/run_notebook.py writes them; none holds a folder of the machine, an error or a log."""
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells if is_run(cell)] == list(range(1, sum(map(is_run, cells)) + 1))
    assert not [cell for cell in cells if not is_run(cell) and cell["outputs"]]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert "error" not in {output["output_type"] for output in outputs}
    assert not [output for output in outputs if any(folder in str(output) for folder in ("/tmp", "/home", "/work"))]
