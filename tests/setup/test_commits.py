"""Hub ids: their commits are found once and hold for a run's whole life; where a decoder starts."""

from __future__ import annotations

import huggingface_hub
import pytest
from helpers.tiny_models import tiny

from jaxlm.config.loading import dump_config
from jaxlm.config.schema import Config
from jaxlm.hf.hub import find_model_dir
from jaxlm.models import FAMILIES
from jaxlm.setup.commits import pin_commits


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose branches can move: revision -> commit, and the revisions that were asked for."""
    branches, asked = {None: "a" * 40, "dev": "d" * 40}, []

    def snapshot_download(name: str, revision: str | None = None, **_: object) -> str:
        asked.append(revision)
        return str(tmp_path / name / "snapshots" / branches.get(revision, revision or ""))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return branches, asked


def config_of(restart: bool = False, **model: object) -> Config:
    task, data = {"kind": "classification"}, {"train": {"path": "x.csv"}}
    sections = {"task": task, "data": data, "train": {"restart": restart}}
    return Config.model_validate({"name": "run", "model": model, **sections})


def test_a_resumed_run_keeps_the_commits_that_it_started_with(hub, tmp_path):
    branches, asked = hub
    saved = tmp_path / "config.yaml"
    config = config_of(init="me/net", tokenizer="me/words")
    first = pin_commits(config, saved)
    assert (first.model.commit, first.model.tokenizer_commit) == ("a" * 40, "a" * 40)
    saved.write_text(dump_config(first))
    branches[None] = "b" * 40
    asked.clear()
    assert pin_commits(config, saved) == first and asked == []  # nor is the hub asked
    assert pin_commits(config_of(init="me/net", tokenizer="me/words", restart=True), saved).model.commit == "b" * 40
    assert pin_commits(config_of(init="me/other"), saved).model.commit == "b" * 40
    assert pin_commits(config_of(init="me/net", revision="dev"), saved).model.commit == "d" * 40
    assert pin_commits(config_of(init="me/net", commit="c" * 40), saved).model.commit == "c" * 40


def test_directories_have_no_commit(hub, tmp_path):
    model = pin_commits(config_of(init=str(tmp_path)), tmp_path / "absent").model
    assert model.commit is None and model.tokenizer_commit is None and hub[1] == []


def test_a_commit_is_what_is_fetched(hub):
    assert find_model_dir("me/net", key="model.init", revision="e" * 40).name == "e" * 40


def test_a_decoder_starts_where_config_json_says_else_with_padding():
    written = FAMILIES["t5"].to_hf(tiny("t5").config)
    assert FAMILIES["t5"].from_hf({**written, "decoder_start_token_id": 5, "pad_token_id": 3}).decoder_start_id == 5
    assert FAMILIES["t5"].from_hf({**written, "decoder_start_token_id": None, "pad_token_id": 3}).decoder_start_id == 3
