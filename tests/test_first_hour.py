"""docs/guides/first_hour.md: its commands, as they stand there, lead from 300 rows to a score and answers."""

from __future__ import annotations

import csv
import json

import pytest
from helpers.first_hour import write_tables
from helpers.page_commands import execute
from helpers.pages import block_run_as, blocks_of, commands_in
from helpers.paths import REPOSITORY

PAGE = REPOSITORY / "docs/guides/first_hour.md"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_table_to_answers(tmp_path, monkeypatch, shared_data):
    truth = write_tables(tmp_path, shared_data)
    monkeypatch.chdir(tmp_path)
    *commands, prediction = commands_in(block_run_as("first-hour").text)
    assert [command.split()[1] for command in commands] == ["init", "check", "finetune", "evaluate"]
    scores = json.loads([execute(command) for command in commands][-1])
    assert scores["accuracy"] > 0.85  # of 0.70, if all were personal
    execute(prediction)
    with (tmp_path / "antworten.csv").open(encoding="utf-8", newline="") as file:
        answers = list(csv.DictReader(file, delimiter=";"))
    assert [row["Nr"] for row in answers] == [str(i) for i in range(300, 339)]
    header = next(block for block in blocks_of(PAGE) if "prediction.label" in block.text).text.splitlines()[0]
    assert list(answers[0]) == header.split(";")
    right = sum(row["prediction.label"] == label for row, label in zip(answers, truth, strict=True))
    assert right >= 33 and not any(row["error"] for row in answers)
    assert (tmp_path / "check.html").exists() and (tmp_path / "runs/nachrichten/report.html").exists()
    exec(compile(block_run_as("first-hour-python").text, str(PAGE), "exec"), {})


def test_it_takes_fewer_than_ten_commands():
    before = [block for block in blocks_of(PAGE) if block.language == "bash"][:2]
    commands = [part for block in before for line in commands_in(block.text) for part in line.split(" && ")]
    assert 5 < len(commands) < 10 and commands[-1].startswith("jaxlm predict")
