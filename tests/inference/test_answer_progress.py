"""How far predictions are: on a terminal, in a log, and at the end."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from jaxlm.inference import answer_progress
from jaxlm.inference.answer_progress import counted

ANSWERS = [{"prediction": 1}, {"error": "no text"}, {"prediction": 2}]


def test_rows_are_passed_on_and_counted(caplog):
    caplog.set_level(logging.INFO, "jaxlm")
    shown = io.StringIO()
    assert list(counted(ANSWERS, "out.jsonl", Console(file=shown))) == ANSWERS
    assert list(counted(ANSWERS[:1], "-", Console(file=shown))) == ANSWERS[:1]
    assert caplog.messages == [
        "wrote 3 rows to out.jsonl, 1 of them with an `error`",
        "wrote 1 row to standard output",
    ]
    assert shown.getvalue() == ""  # no terminal


def test_a_log_hears_of_it_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO, "jaxlm")
    monkeypatch.setattr(answer_progress, "EVERY", 0.0)
    list(counted(ANSWERS, "out.jsonl", Console(file=io.StringIO())))
    assert caplog.messages[0].startswith("1 rows answered, ") and len(caplog.messages) == 4


@pytest.mark.parametrize(
    ("output", "terminal", "expected"), [("o", True, True), ("-", True, False), ("-", False, True)]
)
def test_a_terminal_shows_it_unless_the_rows_go_there(output, terminal, expected, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal, raising=False)
    shown = io.StringIO()
    list(counted(ANSWERS, output, Console(file=shown, force_terminal=True)))
    assert ("rows" in shown.getvalue()) == expected
