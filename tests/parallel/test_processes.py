"""What processes tell each other; the exchange itself is replaced (test_multiprocess.py has the real one)."""

from __future__ import annotations

import json

import pytest

from jaxlm.errors import UserError
from jaxlm.parallel import processes


@pytest.fixture
def others(monkeypatch):
    """Two processes: what the second one says to each exchange is appended to the list."""
    answers: list[object] = []

    def exchange(value=None, error=None):
        if error is not None:
            raise error
        return [value, answers.pop(0)]

    monkeypatch.setattr(processes, "is_multiprocess", lambda: True)
    monkeypatch.setattr(processes, "all_gather_json", exchange)
    monkeypatch.setattr(processes, "_peers", processes._PeerState())
    return answers


def test_settings_that_differ_are_named(others):
    mine = {"name": "run", "train.batch_size": 8, "data.max_length": 64}
    theirs = {"name": "run", "train.batch_size": 16, "data.stride": None, "data.max_length": 64, "seed": 1}
    others += ["another digest", theirs]
    with pytest.raises(UserError) as raised:
        processes.assert_same("the settings", lambda: mine)
    said = str(raised.value)
    assert "the settings differ between processes: those of process 1 are not those of process 0 (" in said
    assert "(train.batch_size: 8 in process 0, 16 in process 1; seed: None in process 0, 1 in process 1)" in said


def test_texts_that_differ_and_values_that_do_not(others):
    others += ["another digest"]
    with pytest.raises(UserError, match="the rows differ between processes: .* of process 0. Start all hosts"):
        processes.assert_same("the rows", lambda: "mine")
    monkeyed = {"b": 1, "a": [2]}
    others += [processes.hashlib.sha256(json.dumps(monkeyed, sort_keys=True).encode()).hexdigest()]
    processes.assert_same("the settings", lambda: {"a": [2], "b": 1})
