"""`jaxlm push`, against a hub on this machine."""

from __future__ import annotations

import json
import socket

import pytest
from helpers.fake_hub import TOKEN, fake_hub
from huggingface_hub import constants

from jaxlm.cli import main

# huggingface_hub hands its HTTP client a file in a way that the client calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=")


@pytest.fixture
def hub(monkeypatch):
    with fake_hub() as (found, address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def run(tmp_path):
    model = tmp_path / "runs/tiny/model"
    model.mkdir(parents=True)
    (tmp_path / "runs/tiny/config.yaml").write_text("name: tiny\n")
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (model / "README.md").write_text("---\ntags: [jaxlm]\n---\n# tiny\n")
    (model / "model.safetensors").write_bytes(b"weights" * 100)
    return model.parent


def test_an_export_goes_to_a_new_repository(hub, run, capsys):
    assert main(["push", str(run), "me/tiny", "--private", "--revision", "trial"]) == 0
    made = hub.repositories["me/tiny"]
    assert made.get("private") is True or made.get("visibility") == "private"
    assert ("me/tiny", "trial") in hub.branches
    held = hub.files["me/tiny", "trial"]
    assert held == {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    assert capsys.readouterr().out.strip() == f"http://127.0.0.1:{hub.port}/me/tiny/commit/{'1' * 40}"
    assert main(["push", str(run), "me/tiny"]) == 0  # into the same repository, its main branch
    assert len(hub.files["me/tiny", "main"]) == 3


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"run": "runs/other"}, 2, "no directory runs/other"),
        ({"hub_id": "tiny"}, 2, "expected OWNER/NAME"),
        ({"hub_id": "a/b c"}, 2, "is no hub id"),
        ({"token": ""}, 2, "the hub asks for a token; log in with 'hf auth login', or set HF_TOKEN"),
        ({"token": "hf_other"}, 2, "the token may not write me/tiny (status 401)"),
        ({"failing": 403}, 2, "the token may not write me/tiny (status 403)"),
        ({"failing": 400}, 2, "the hub refuses me/tiny"),
        ({"failing": 501}, 1, "the hub failed (status 501)"),
        ({"objects": True}, 1, "Error while uploading 'model.safetensors' to the Hub"),
        ({"offline": True}, 2, "HF_HUB_OFFLINE is set"),
        ({"endpoint": True}, 1, "the hub cannot be reached"),
    ],
)
def test_what_goes_wrong_is_said(change, status, words, hub, run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", change.get("token", TOKEN))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    hub.failing = change.get("failing")
    hub.failing_objects = "objects" in change
    if "offline" in change:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    if "endpoint" in change:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    assert main(["push", change.get("run", str(run)), change.get("hub_id", "me/tiny")]) == status
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error


def test_a_run_without_an_export_is_refused(hub, run, capsys):
    (run / "model" / "config.json").unlink()
    assert main(["push", str(run), "me/tiny"]) == 2
    assert "finish the run first" in capsys.readouterr().err
