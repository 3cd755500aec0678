"""The vocabulary that a run learns: kept whole, taken up again, and learned anew when it is stale or damaged."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from jaxlm.config.schema import Config
from jaxlm.data.corpus.dataset import CorpusSources
from jaxlm.data.examples.tables import ColumnRoles, open_tables
from jaxlm.errors import UserError
from jaxlm.files import read_sealed
from jaxlm.setup import tokenizer as kept
from jaxlm.setup.tokenizer import make_tokenizer


def make(folder: Path, text: str, *, lowercase: bool = True, corpus: bool = False):
    """The tokenizer of a run over one text, kept in `folder`."""
    config = Config.model_validate(
        {
            "name": "x",
            "model": {"train_tokenizer": {"vocab_size": 80, "min_frequency": 1, "lowercase": lowercase}},
            "data": {"train": {"rows": [{"text": text, "label": "a"}]}},
        }
    )
    sources = open_tables(config.data, ("train",), ColumnRoles(("text",)))
    if corpus:
        sources = CorpusSources(config.data, ("train",), "text", folder.parent / "cache", 0, lambda: None)
    return make_tokenizer(config, None, folder, sources)


@pytest.mark.parametrize("corpus", [False, True])
def test_it_is_taken_up_again_and_learned_anew_for_other_texts_or_settings(tmp_path, monkeypatch, caplog, corpus):
    folder = tmp_path / "tokenizer"
    first = make(folder, "some words, some more Words", corpus=corpus)
    mask = os.umask(0)
    os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~mask
    with monkeypatch.context() as patch:
        patch.setattr(kept, "train_tokenizer", lambda *args: pytest.fail("learned again"))
        assert make(folder, "some words, some more Words", corpus=corpus).fingerprint == first.fingerprint
    assert "learned again" not in caplog.text
    other = make(folder, "quite another text", corpus=corpus)
    assert other.fingerprint != first.fingerprint
    assert f"{folder}: it was learned from other texts; the vocabulary is learned again" in caplog.text
    make(folder, "quite another text", lowercase=False, corpus=corpus)
    assert "it was learned with other settings" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["tokenizer"]


DAMAGES = {
    "flipped": lambda path: path.write_bytes(path.read_bytes()[:-9] + b"#" + path.read_bytes()[-8:]),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_damage_is_named(tmp_path, caplog, how):
    folder = tmp_path / "tokenizer"
    expected = make(folder, "some words").fingerprint
    for name in (*read_sealed(folder / kept.MADE_FROM)["files"], kept.MADE_FROM):
        caplog.clear()
        DAMAGES[how](folder / name)
        assert make(folder, "some words").fingerprint == expected
        [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert name in warning or "damaged" in warning


def test_a_folder_that_an_earlier_version_or_a_kill_left_is_replaced(tmp_path, caplog):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert make(folder, "some words").vocab_size > 2
    assert "the tokenizer is incomplete or damaged" in caplog.text


def test_of_several_processes_only_the_first_learns(tmp_path, monkeypatch):
    folder = tmp_path / "tokenizer"
    make(folder, "some words")
    monkeypatch.setattr(kept.processes, "is_first", lambda: False)
    with pytest.raises(UserError, match="data.train: what process 0 reads is not what .* learned from other texts"):
        make(folder, "quite another text")
