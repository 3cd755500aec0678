"""What the README shows runs as it stands: the library example, and the five commands from raw text to predictions."""

from __future__ import annotations

import glob
import re
import runpy
import shlex
import sys

import pytest
from helpers.finetuning_runs import read_jsonl, rows, write_jsonl
from helpers.pages import block_run_as, commands_in
from helpers.paths import REPOSITORY
from helpers.pretraining_runs import stories

ROOT = REPOSITORY

SMALL = (
    "'model.config={num_layers: 1, embed_dim: 32, num_heads: 2, mlp_dim: 64}' "
    "train.batch_tokens=1024 train.epochs=1 logging.tensorboard=false"
)
SMALLER = {
    "train_tokenizer": ("16000", "300"),
    "pretrain": ("bert_from_text.yaml", f"bert_from_text.yaml {SMALL}"),
    "finetune": ("from_text.yaml", "from_text.yaml train.epochs=1 logging.tensorboard=false"),
}
"""What makes each command a matter of seconds."""


def test_example_runs(capsys):
    code = block_run_as("library").text
    assert len([line for line in code.split("\n") if line.strip()]) <= 27
    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})  # warnings are errors, as everywhere here
    assert 0.5 < float(capsys.readouterr().out) < 3.0


def execute(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs `python SCRIPT ARGUMENTS` as a shell reads it, but here: to import all takes longer than to run."""
    python, script, *arguments = shlex.split(command)
    assert python == "python"
    expanded = [path for argument in arguments for path in sorted(glob.glob(argument)) or [argument]]
    monkeypatch.setattr(sys, "argv", [script, *expanded])
    monkeypatch.setattr("jaxlm.cli.restart_with_settings", lambda **_: None)  # tests/parallel/test_cpu_env.py has it
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code in (0, None), command


def test_five_commands_from_text_to_predictions(tmp_path, monkeypatch):
    commands = commands_in(block_run_as("from-text").text)
    assert len(commands) == 5
    for name in ("scripts", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "data/text").mkdir(parents=True)
    for seed, name in enumerate(("train-a", "train-b", "validation")):
        (tmp_path / f"data/text/{name}.txt").write_text(stories(80, seed), encoding="utf-8")
    (tmp_path / "data/labelled").mkdir()
    for seed, (name, number) in enumerate({"train": 64, "validation": 32, "new": 8}.items()):
        write_jsonl(tmp_path / f"data/labelled/{name}.jsonl", rows(number, seed))
    monkeypatch.chdir(tmp_path)
    for command in commands:
        script = re.match(r"python scripts/(\w+)\.py", command).group(1)
        if script in SMALLER:
            long, short = SMALLER[script]
            assert long in command
            command = command.replace(long, short)
        execute(command, monkeypatch)
    answers = read_jsonl(tmp_path / "predictions.jsonl")
    assert len(answers) == 8
    assert all(set(row["prediction"]["scores"]) == {"neg", "pos"} for row in answers)
    log = [row for row in read_jsonl(tmp_path / "runs/bert-from-text/metrics.jsonl") if row["kind"] == "train"]
    assert log[-1]["loss"] == pytest.approx(5.5, abs=1.0)  # of about 250 entries, hardly trained
