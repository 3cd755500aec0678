"""The command that trains a tokenizer: options, refusals, and an output that is whole or absent."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY
from helpers.tokenizer_folders import ids

from jaxlm.cli import main
from jaxlm.errors import RunFailure, UserError
from jaxlm.setup.tokenizer_training import train_to_directory
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture
def text(tmp_path) -> Path:
    (tmp_path / "in.txt").write_text("the cat sat on the mat\nthe dog sat\n" * 20)
    return tmp_path / "in.txt"


def test_command(text, tmp_path):
    script = REPOSITORY / "scripts" / "train_tokenizer.py"
    command = [sys.executable, str(script), "--input", str(text), "--vocab-size", "300", "--type", "byte_bpe"]
    command += ["--family", "roberta", "--output", str(tmp_path / "new" / "out"), "--min-frequency", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "out: byte_bpe, " in done.stderr
    t = load_tokenizer(tmp_path / "new" / "out")
    assert t.cls_id == 0 and t.decode(ids(t, "the cat")) == "the cat"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out"]


def test_command_options(text, tmp_path):
    base = ["train-tokenizer", "--input", str(text)]
    assert main([*base, "--type", "char", "--output", f"{tmp_path}/char"]) == 0
    assert load_tokenizer(tmp_path / "char").vocab_size == len(set("the cat sat on the mat\nthe dog sat")) + 2
    (tmp_path / "rows.jsonl").write_text('{"body": "Die Katze"}\n' * 5)
    (tmp_path / "empty").mkdir()
    options = ["--type", "wordpiece", "--no-lowercase", "--vocab-size", "80", "--column", "body"]
    assert main(["train-tokenizer", "--input", f"{tmp_path}/*.jsonl", *options, "--output", f"{tmp_path}/empty"]) == 0
    t = load_tokenizer(tmp_path / "empty")
    assert t.tokens(ids(t, "Die Katze", special_tokens=False)) == ["Die", "Katze"]
    options = ["--type", "unigram", "--vocab-size", "200", "--max-sentences", "10"]
    assert main([*base, *options, "--output", f"{tmp_path}/sp"]) == 0
    assert load_tokenizer(tmp_path / "sp").eos_id == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--type bpe", "--vocab-size: type bpe needs"),
        (
            "--type bpe --vocab-size 400 --min-frequency 2",
            "--min-frequency: not for type bpe; only for wordpiece, byte_bpe",
        ),
        ("--type char --no-lowercase", "--lowercase: not for type char; only for wordpiece"),
        ("--type wordpiece --vocab-size 400 --max-sentences 5", "--max-sentences: not for type wordpiece"),
        ("--type wordpiece --vocab-size 3", "vocab_size: 3 is too small"),
    ],
)
def test_command_refuses_options(text, tmp_path, capsys, options, message):
    command = ["train-tokenizer", "--input", str(text), "--output", f"{tmp_path}/out", *options.split()]
    assert main(command) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_output_is_never_overwritten(text, tmp_path, capsys):
    """Which is found before the training, and before a missing input."""
    base = ["train-tokenizer", "--type", "char", "--input", f"{tmp_path}/absent", "--output"]
    assert main([*base, str(tmp_path)]) == 2
    assert "is a directory that is not empty; expected a new or an empty directory" in capsys.readouterr().err
    assert main([*base, str(text)]) == 2
    assert "in.txt is a file; expected a new or an empty directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


def test_output_is_whole_or_absent(text, tmp_path, monkeypatch):
    train = functools.partial(train_to_directory, [str(text)], tmp_path / "out", TokenizerTrainingConfig(type="char"))
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError):
        train_to_directory([str(tmp_path / "bad.jsonl")], tmp_path / "out", TokenizerTrainingConfig(type="char"))
    save = Tokenizer.save

    def full_disk(self, directory):
        save(self, directory)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunFailure, match="--output: cannot write .*No space left"):
        patch.setattr(Tokenizer, "save", full_disk)
        train()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl", "in.txt"]
    train()
    digest = hashlib.sha256((tmp_path / "out" / "tokenizer.json").read_bytes()).hexdigest()
    with pytest.raises(UserError, match="not empty"):
        train()
    assert hashlib.sha256((tmp_path / "out" / "tokenizer.json").read_bytes()).hexdigest() == digest
