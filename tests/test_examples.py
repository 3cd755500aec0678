"""The examples of code from outside the package: a task, an objective and a model family, found by the commands."""

from __future__ import annotations

import json
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest
import yaml
from helpers.finetuning_runs import read_jsonl, run, write_config, write_jsonl
from helpers.pages import block_run_as, commands_in
from helpers.paths import REPOSITORY
from helpers.pretraining_runs import write_pretraining

from jaxlm import plugins
from jaxlm.config.loading import load_config
from jaxlm.config.schema import include_registered_tasks
from jaxlm.errors import UserError
from jaxlm.models import FAMILIES
from jaxlm.tasks import TASKS, register
from jaxlm.tasks.causal_lm import CausalLM, CausalLMConfig

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(autouse=True)
def registries_as_before():
    """Forgets what a test registers."""
    kept = [(registry, dict(registry)) for registry in (TASKS, FAMILIES)]
    yield
    for registry, known in kept:
        registry.clear()
        registry.update(known)
    for name in [name for name in sys.modules if name.startswith("jaxlm_plugin_")]:
        del sys.modules[name]
    include_registered_tasks()


def test_a_task_in_one_file_trains_packed_evaluates_and_predicts(tmp_path, capsys, monkeypatch):
    plugin = EXAMPLES / "new_task.py"
    assert len(plugin.read_text().splitlines()) < 80
    monkeypatch.chdir(REPOSITORY)
    [command] = commands_in(block_run_as("new-task").text)
    assert command.startswith("python scripts/finetune.py ")
    assert run("finetune", *command.split()[2:], f"logging.directory={tmp_path}") == 0
    directory = tmp_path / "toy-tagging"
    summary = json.loads((directory / "summary.json").read_text())
    assert summary["scores"]["test"]["accuracy"] == 1.0
    assert [row["prediction"]["tags"] for row in read_jsonl(directory / "predictions" / "test.jsonl")] == [
        "D N V D N", "N V D N",
    ]  # fmt: skip
    capsys.readouterr()
    assert run("evaluate", "--plugin", plugin, "--run", directory, "--split", "test") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(summary["scores"]["test"])
    asked = write_jsonl(tmp_path / "new.jsonl", [{"words": "the dog likes cats"}, {"words": "a bird sees the cat"}])
    assert run("predict", "--plugin", plugin, "--run", directory, "--input", asked, "--output", tmp_path / "out") == 0
    assert [row["prediction"]["tags"] for row in read_jsonl(tmp_path / "out")] == ["D N V N", "D N V D N"]


@pytest.mark.slow
def test_an_objective_and_a_family_in_a_file_each(tmp_path):
    config = write_pretraining(
        tmp_path, "causal_lm", task={"kind": "toy_reversed_lm"}, train={"steps": 4, "eval_every": 4}
    )
    assert run("pretrain", "--plugin", EXAMPLES / "new_objective.py", "--config", config) == 0
    assert json.loads((tmp_path / "runs" / "tiny-lm" / "summary.json").read_text())["scores"]["validation"]["loss"] > 0

    folder = tmp_path / "family"
    path = write_config(folder, train={"epochs": 1, "batch_size": 32})
    content = yaml.safe_load(path.read_text())
    content["model"] = {"family": "toy_bert", "preset": "toy", "train_tokenizer": {"vocab_size": 200}}
    path.write_text(yaml.safe_dump(content))
    plugin = EXAMPLES / "new_family.py"
    assert run("finetune", "--plugin", plugin, "--config", path) == 0
    exported = json.loads((folder / "runs" / "tiny" / "model" / "config.json").read_text())
    assert exported["model_type"] == "toy_bert"
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "a good film"}])
    answers = tmp_path / "answers.jsonl"
    assert (
        run("predict", "--plugin", plugin, "--run", folder / "runs" / "tiny", "--input", rows, "--output", answers) == 0
    )
    assert read_jsonl(answers)[0]["prediction"]["label"] in ("pos", "neg")


def test_a_kind_that_nobody_registered_is_refused_and_one_that_is_taken_too(tmp_path, capsys):
    assert run("finetune", "--config", EXAMPLES / "new_task.yaml") == 2
    assert "task.kind: expected one of" in capsys.readouterr().err

    class Other(CausalLM):
        Config = CausalLMConfig

    with pytest.raises(UserError, match="task.kind=causal_lm: CausalLM goes by that kind already"):
        register(Other)
    assert register(CausalLM) is CausalLM


def test_plugins_that_cannot_be_imported_are_named(tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.py").write_text("import no_such_module\n")
    for file, message in (("missing.py", "no file"), ("broken.py", "No module named 'no_such_module'")):
        assert run("finetune", "--plugin", tmp_path / file, "--config", EXAMPLES / "new_task.yaml") == 2
        assert message in capsys.readouterr().err

    loaded = []
    points = [
        SimpleNamespace(name="good", value="good:x", load=lambda: loaded.append("good")),
        SimpleNamespace(name="bad", value="bad:x", load=lambda: 1 / 0),
    ]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "jaxlm.plugins" else [])
    with pytest.raises(UserError, match="plugin bad .bad:x.: cannot be imported: division by zero"):
        plugins.load_plugins()
    assert loaded == ["good"]


def test_the_schema_knows_a_task_registered_by_an_import(tmp_path):
    plugins.load_plugins([str(EXAMPLES / "new_task.py")])
    config = load_config(EXAMPLES / "new_task.yaml")
    assert config.task.kind == "toy_tagging"
    with pytest.raises(UserError, match=r"unknown key task\.tagz; did you mean task\.tags\?"):
        load_config(EXAMPLES / "new_task.yaml", ["task.tagz=[a]"])
