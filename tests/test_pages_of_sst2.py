"""What README.md and docs/ do with sst2.yaml and with a table of one's own runs, in few rows and a tiny model.

The commands and the Python stand in the pages, each block under a mark (helpers.pages).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.bases import write_base
from helpers.finetuning_runs import read_jsonl, rows, write_jsonl
from helpers.page_commands import execute
from helpers.pages import blocks_run_as, commands_in
from helpers.paths import REPOSITORY

pytestmark = pytest.mark.slow


def run_block(name: str) -> list[str]:
    """Runs the lines of a marked block of shell commands; returns what each prints."""
    return [execute(command) for block in blocks_run_as(name) for command in commands_in(block.text)]


def write_table(path: Path, content: list[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(content[0]))
        table.writeheader()
        table.writerows(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """The working directory of a reader who has the files that the pages name."""
    made = tmp_path_factory.mktemp("reader")
    (made / "configs").symlink_to(REPOSITORY / "configs")
    data = made / "data/classification/sst2"
    data.mkdir(parents=True)
    for seed, name in enumerate(("train", "validation", "test")):
        lines = [f"{row['text']}\t{int(row['label'] == 'pos')}\n" for row in rows(64 if name == "train" else 24, seed)]
        (data / f"{name}.tsv").write_text("".join(lines), encoding="utf-8")
    (made / "models").mkdir()
    write_base(made / "models/minilm", positions=128)
    for seed, name in enumerate(("my", "a", "b"), 3):
        write_table(made / f"{name}.csv", rows(40, seed))
    mine = {"name": "my", "model": {"init": "models/minilm"}, "data": {"train": {"path": "my.csv"}, "max_length": 48}}
    mine["data"]["validation"] = {"fraction": 0.25}
    (made / "my.yaml").write_text(yaml.safe_dump(mine), encoding="utf-8")
    asked = [{"sentence": row["text"], "label": str(int(row["label"] == "pos"))} for row in rows(24, 6)]
    write_jsonl(made / "labelled.jsonl", [{**row, "source": "ab"[i % 2]} for i, row in enumerate(asked)])
    write_table(made / "new.csv", [{"sentence": row["sentence"]} for row in asked])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made)
        yield made


@pytest.fixture(scope="module")
def trained(folder) -> list[str]:
    """What the README's commands on a checkpoint print."""
    return run_block("readme-checkpoint")


def test_commands_of_the_readme(folder, trained):
    scores, answer = (json.loads(trained[i]) for i in (3, 4))
    assert {"accuracy", "loss"} <= set(scores)
    assert answer["sentence"] == "a quiet triumph" and set(answer["prediction"]["scores"]) == {"0", "1"}
    assert (folder / "runs/sst2-minilm/report.html").exists() and (folder / "runs/seed1/summary.json").exists()
    assert (folder / "my-model/model.safetensors").exists()


@pytest.mark.parametrize("name", ["readme-python", "python"])
def test_python(folder, trained, name):
    code = "".join(block.text for block in blocks_run_as(name))
    names: dict[str, object] = {}
    exec(compile(code, name, "exec"), names)
    if name == "python":
        assert {path.name for path in (folder / "runs").iterdir()} >= {"seed-1", "my", "other-rows", "quick"}
        assert names["model"].labels == ("0", "1")  # type: ignore[attr-defined]


def test_predicting_and_evaluating(folder, trained):
    run_block("predicting")
    with (folder / "answers.csv").open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 24 and {row["prediction.label"] for row in answers} <= {"0", "1"}
    assert (folder / "runs/sst2-minilm/slices").is_dir()


def test_fine_tuning(folder, trained):
    run_block("fine-tuning")
    assert (folder / "runs/slower/summary.json").exists()


def test_checking_and_a_first_config(folder, tmp_path, monkeypatch):
    run_block("checking-data")
    assert json.loads((folder / "check.json").read_text())["splits"]
    write_table(tmp_path / "my.csv", rows(40, 7))
    monkeypatch.chdir(tmp_path)
    run_block("first-config")
    assert read_jsonl(tmp_path / "runs/my/predictions/validation.jsonl")
