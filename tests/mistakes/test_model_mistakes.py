"""Mistakes in the model or run that is named: mistyped, damaged, of another kind, without a tokenizer.

Elsewhere: pickled, truncated and unsupported checkpoints, heads of other sizes, rows that cannot be answered
(tests/commands/test_bad_input.py); Git LFS (tests/hf/test_model_names.py); sentence-transformers folders
(tests/hf/test_sentence_modules.py); exports over full folders and again (tests/hf/test_exports.py); changed settings
on resumption, evaluation of unlabelled files (tests/commands/test_finetune.py).
"""

from __future__ import annotations

import json
import shutil

import pytest
from helpers.finetuning_runs import write_jsonl
from helpers.mistakes import words


def forbidden(*_args, **_options):
    raise AssertionError("the hub was asked")


@pytest.fixture
def here(say, classifier, tmp_path, monkeypatch):
    """The working directory, with a model in `models/minilm` and a run in `runs/sst2`."""
    monkeypatch.setattr("jaxlm.hf.hub._download", forbidden)
    shutil.copytree(classifier, tmp_path / "cwd/models/minilm")
    shutil.copytree(classifier, tmp_path / "cwd/runs/sst2/model")
    return tmp_path / "cwd"


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("models/minlm", "models/minilm"),
        ("model/minilm", "models/minilm"),
        ("runs/sst-2", "runs/sst2"),
        ("outputs/sst2", None),
        ("./minilm", None),
    ],
)
def test_a_mistyped_model(given, near, say, config, here):
    """Before the hub is asked, the nearest name that is here is named, and the working directory."""
    said = say("finetune", "--config", config, f"model={{init: {given}}}")
    words(said, f"model.init: no directory {given}", str(here), *([f"did you mean '{near}'?"] if near else []))


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "--run", "runs/sst-2"),
        ("predict", "--run", "runs/sst-2", "--input", "in.jsonl", "--output", "-"),
        ("convert", "export", "runs/sst-2", "out"),
        ("convert", "inspect", "runs/sst-2"),
        ("generate", "--run", "runs/sst-2"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_a_mistyped_run(command, say, here):
    write_jsonl(here / "in.jsonl", [{"text": "good"}])
    words(say(*command), "runs/sst-2", "did you mean 'runs/sst2'?", f"the working directory, {here}")


def test_an_input_that_is_not_there(say, here):
    write_jsonl(here / "reviews.jsonl", [{"text": "good"}])
    said = say("predict", "--run", "runs/sst2", "--input", "review.jsonl", "--output", "-")
    words(said, "--input", "did you mean 'reviews.jsonl'?", str(here))


def test_a_model_without_a_tokenizer(say, config, here):
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"):
        (here / "models/minilm" / name).unlink(missing_ok=True)
    said = say("finetune", "--config", config, "model={init: models/minilm}")
    words(said, "models/minilm: no tokenizer; looked for tokenizer.json, vocab.txt")


def test_an_embedding_or_a_bare_model_is_not_asked_for_labels(say, here):
    path = here / "models/minilm/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["BertForMaskedLM"]}))
    write_jsonl(here / "in.jsonl", [{"text": "good"}])
    said = say("predict", "--run", "models/minilm", "--input", "in.jsonl", "--output", "-")
    words(said, "models/minilm", "fine-tune it")


def test_a_run_that_is_not_finished(say, config, here):
    shutil.rmtree(here / "runs/sst2/model")
    (here / "runs/sst2/config.yaml").write_text(config.read_text())
    said = say("evaluate", "--run", "runs/sst2", "--split", "validation")
    words(said, "runs/sst2 is a run without an exported model", "finish the run first")


def test_a_split_that_the_run_lacks(say, config, here):
    text = config.read_text().replace("  test:\n", "  unused:\n", 1)
    lines = [line for line in text.split("\n") if "unused" not in line and "test.jsonl" not in line]
    (here / "runs/sst2/config.yaml").write_text("\n".join(lines))
    said = say("evaluate", "--run", "runs/sst2", "--split", "test")
    words(said, "--split test: the run's config has no data.test; it has train, validation")


def test_a_finished_run_asked_for_more(say, config, here):
    """What to do instead is said: a run that begins from it."""
    run = here / "runs/tiny"
    run.mkdir()
    (run / "config.yaml").write_text(config.read_text())
    (run / "summary.json").write_text('{"status": "finished"}')
    command = ("finetune", "--config", config, "--dry-run", "logging.directory=runs")
    directory = [line for line in config.read_text().split("\n") if "directory" in line][0].split()[-1]
    (run / "config.yaml").write_text(config.read_text().replace(directory, "runs"))
    said = say(*command, "train.epochs=9")
    words(said, "train.epochs: 2.0 then, 9.0 now", "train.restart=true", f"name=NAME model.init={run}")
    assert "model.init" not in say(*command, "seed=4")
