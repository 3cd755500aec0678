"""Pretraining from the command line: every objective, evaluation, and what is built on its runs."""

from __future__ import annotations

import io
import json
import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.finetuning_runs import read_jsonl, rows, run, write_config, write_jsonl
from helpers.pretraining_runs import MODELS, write_pretraining
from safetensors.numpy import load_file

from jaxlm.data.corpus import text_batches
from jaxlm.data.corpus.documents import Documents

MASKED = {
    "model": {**MODELS["masked_lm"], "dropout": 0.0, "attention_dropout": 0.0},
    "train": {"batch_size": 16, "steps": 12, "eval_every": 4},
    "logging": {"every": 1},
}
"""The settings of every run of masked language modelling here, so that they share what is compiled."""


def evaluations(folder: Path, name: str = "tiny-lm") -> list[float]:
    log = read_jsonl(folder / "runs" / name / "metrics.jsonl")
    return [row["loss"] for row in log if row["kind"] == "evaluation" and row["split"] == "validation"]


def weights(folder: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(folder / "runs" / name / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def masked(tmp_path_factory) -> Path:
    """Folder of a finished run of masked language modelling."""
    folder = tmp_path_factory.mktemp("masked")
    assert run("pretrain", "--config", write_pretraining(folder, "masked_lm", **MASKED)) == 0
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory) -> Path:
    """Folder of a finished run of causal language modelling, which writes samples."""
    folder = tmp_path_factory.mktemp("causal")
    task = {"kind": "causal_lm", "samples": {"prompts": ["the film "]}}
    settings = {"max_new_tokens": 12}
    assert run("pretrain", "--config", write_pretraining(folder, "causal_lm", task=task, generation=settings)) == 0
    return folder


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("replaced_tokens", "span_corruption")))
        for kind in MODELS
    ],
)
def test_every_objective_learns(request, tmp_path, kind):
    if kind in ("masked_lm", "causal_lm"):
        folder = request.getfixturevalue(kind.removesuffix("_lm"))
    else:
        folder = tmp_path
        assert run("pretrain", "--config", write_pretraining(folder, kind)) == 0
    losses = evaluations(folder)
    assert len(losses) > 1 and losses[-1] < losses[0]
    summary = json.loads((folder / "runs/tiny-lm/summary.json").read_text())
    assert summary["problem"] == kind and summary["status"] == "finished"
    assert summary["data"]["train"]["documents"] == 60
    scores = summary["scores"]["validation"]
    if kind == "replaced_tokens":
        assert {"generator_loss", "discriminator_loss", "replaced_recall"} <= scores.keys()
    else:
        assert scores["perplexity"] == pytest.approx(math.exp(scores["loss"]))
    assert ("bits_per_byte" in scores) == (kind == "causal_lm")


def test_masked_run_directory(masked):
    made = masked / "runs" / "tiny-lm"
    config = json.loads((made / "model/config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]
    assert {path.name for path in made.iterdir()} - {"run.lock", "tokenizer"} == {
        "config.yaml", "checkpoints", "metrics.jsonl", "summary.json", "report.html", "model",
    }  # fmt: skip
    assert "masked language model" in (made / "report.html").read_text()
    assert run("convert", "inspect", made) == 0


def test_evaluate_equals_the_score_of_the_run(masked, capsys):
    made = masked / "runs" / "tiny-lm"
    summary = json.loads((made / "summary.json").read_text())
    capsys.readouterr()
    assert run("evaluate", "--run", made, "--split", "validation") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores == pytest.approx(summary["scores"]["validation"], abs=1e-5)
    assert run("evaluate", "--run", made, "--data", masked / "validation.txt") == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(scores, abs=1e-6)


def test_a_generative_model_writes_samples_and_answers(causal, tmp_path, capsys):
    made = causal / "runs/tiny-lm"
    samples = read_jsonl(made / "samples.jsonl")
    assert [sample["step"] for sample in samples] == [6, 12]
    assert all(sample["prompt"] == "the film " and len(sample["text"]) == 12 for sample in samples)
    assert samples[-1]["text"] in (made / "report.html").read_text()
    (tmp_path / "in.jsonl").write_text('{"text": "the film ", "n": 1}\n{"text": "a", "n": 2}\n')
    answer = ("predict", "--run", made, "--input", tmp_path / "in.jsonl", "--output", "-")
    assert run(*answer) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert first == {"text": "the film ", "n": 1, "prediction": {"text": samples[-1]["text"]}}
    assert second["n"] == 2 and len(second["prediction"]["text"]) == 12
    assert run(*answer, "generation.max_new_tokens=3") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[0])["prediction"]["text"] == samples[-1]["text"][:3]
    long = {"text": "film " * 500, "prediction": "mine"}
    (tmp_path / "in.jsonl").write_bytes(
        b'{"text": null}\n{"text": "\xff"}\n' + json.dumps(long).encode() + b'\n{"text": "a"}\n'
    )
    assert run(*answer, "generation.max_new_tokens=3") == 0
    shown = capsys.readouterr()
    null, undecodable, long, good = map(json.loads, shown.out.splitlines())
    assert "expected a text" in null["error"] and "row 2: not UTF-8" in undecodable["error"]
    assert "tokens; expected at most" in long["error"] and long["input_prediction"] == "mine"
    assert len(good["prediction"]["text"]) == 3 and "'prediction' is called 'input_prediction'" in shown.err


def test_prompts_of_the_terminal_are_continued(causal, capsys, monkeypatch):
    made = causal / "runs/tiny-lm"
    said = json.loads((made / "model/generation_config.json").read_text())
    assert said["max_new_tokens"] == 12 and "top_k" not in said
    text = read_jsonl(made / "samples.jsonl")[-1]["text"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"the film \n{'film ' * 500}\nthe film \r\n"))
    assert run("generate", "--run", made / "model", "generation.max_new_tokens=5") == 0
    shown = capsys.readouterr()
    assert shown.out == f"{text[:5]}\n\n{text[:5]}\n" and "tokens; expected at most" in shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO("the film \n"))
    beams = ("generation.num_beams=2", "generation.num_return_sequences=2", "generation.max_new_tokens=5")
    assert run("generate", "--run", made, *beams) == 0
    texts = capsys.readouterr().out.splitlines()
    (causal / "one.jsonl").write_text('{"text": "the film "}\n')
    assert run("predict", "--run", made, "--input", causal / "one.jsonl", "--output", "-", *beams) == 0
    prediction = json.loads(capsys.readouterr().out)["prediction"]
    first, second = prediction["n_best"]
    assert [prediction["text"], second["text"]] == [first["text"], second["text"]] == texts and len(set(texts)) == 2
    assert first["score"] >= second["score"]


def test_a_model_that_writes_nothing_says_so(masked, capsys):
    assert run("generate", "--run", masked / "runs/tiny-lm") == 2
    assert "predicts nothing by itself" in capsys.readouterr().err


def test_masked_model_predicts_nothing_by_itself(masked, capsys):
    (masked / "in.jsonl").write_text('{"text": "a"}\n')
    made = masked / "runs/tiny-lm"
    assert run("predict", "--run", made, "--input", masked / "in.jsonl", "--output", "-") == 2
    assert "a pretraining run of kind masked_lm predicts nothing by itself" in capsys.readouterr().err


def finetuning(folder: Path, init: str, **train) -> Path:
    """A fine-tuning config that starts from a run or a pretraining config."""
    path = write_config(folder, name="fine", train={"batch_size": 16, "steps": 2, **train})
    config = yaml.safe_load(path.read_text())
    config["model"] = {"init": init}
    config["train"].pop("epochs", None)
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_pretraining_run_is_fine_tuned_with_a_new_head(masked, tmp_path):
    config = finetuning(tmp_path, str(masked / "runs/tiny-lm"))
    assert run("finetune", "--config", config, "optimizer.learning_rate=1e-12") == 0
    summary = json.loads((tmp_path / "runs/fine/summary.json").read_text())
    assert set(summary["model"]["new_parameters"]) == {"head/dense", "head/dense_bias", "head/out", "head/out_bias"}
    before, after = weights(masked, "tiny-lm"), weights(tmp_path, "fine")
    shared = [key for key in before if key in after]
    assert len(shared) > 20
    for key in shared:
        np.testing.assert_allclose(after[key], before[key], atol=1e-6, err_msg=key)
    tokenizer = "model/tokenizer.json"
    assert (tmp_path / "runs/fine" / tokenizer).read_bytes() == (masked / "runs/tiny-lm" / tokenizer).read_bytes()


@pytest.mark.parametrize("family", ["gpt2", pytest.param("lstm", marks=pytest.mark.slow)])
def test_models_that_look_back_classify_by_the_last_token(request, tmp_path, family):
    if family == "gpt2":
        folder = request.getfixturevalue("causal")
    else:
        folder = tmp_path
        sizes = {"num_layers": 1, "embed_dim": 32, "hidden_dim": 32}
        model = {"family": family, "config": sizes, "train_tokenizer": {"type": "char"}}
        train = {"batch_size": 8, "steps": 2, "eval_every": 2}
        assert run("pretrain", "--config", write_pretraining(folder, "causal_lm", model=model, train=train)) == 0
    config = finetuning(tmp_path, str(folder / "runs/tiny-lm"), steps=24, eval_every=24)
    assert run("finetune", "--config", config, "data.max_length=60", "optimizer.learning_rate=2e-2") == 0
    summary = json.loads((tmp_path / "runs/fine/summary.json").read_text())
    assert summary["model"]["new_parameters"][0] == "head/out"
    exported = json.loads((tmp_path / "runs/fine/model/config.json").read_text())
    assert exported["pad_token_id"] == exported["eos_token_id"] == 1  # else Transformers could not find the last token
    log = [row["loss"] for row in read_jsonl(tmp_path / "runs/fine/metrics.jsonl") if row["kind"] == "train"]
    assert min(log[-3:]) < 0.8 * log[0]


@pytest.mark.slow
def test_model_init_may_name_the_pretraining_config(tmp_path, capsys):
    pretraining = write_pretraining(tmp_path, "masked_lm", **MASKED)
    config = finetuning(tmp_path, str(pretraining), scratch_baseline=True)
    assert run("finetune", "--config", config) == 0
    runs = tmp_path / "runs"
    assert {path.name for path in runs.iterdir()} == {"tiny-lm", "fine", "fine-scratch", ".tokens"}
    out = capsys.readouterr().out
    assert "baseline from scratch" in out
    summary = json.loads((runs / "fine/summary.json").read_text())
    scratch = json.loads((runs / "fine-scratch/summary.json").read_text())
    assert summary["baselines"]["from scratch"] == scratch["scores"]["test"]
    assert summary["model"]["parameters"] == scratch["model"]["parameters"]
    assert scratch["model"]["init"] is None and summary["model"]["init"] == str(runs / "tiny-lm")
    # Again: nothing runs twice, and the same settings are recognized.
    stamp = (runs / "tiny-lm/summary.json").stat().st_mtime_ns
    assert run("finetune", "--config", config) == 0
    assert (runs / "tiny-lm/summary.json").stat().st_mtime_ns == stamp


def test_commands_and_kinds_go_together(masked, tmp_path, capsys):
    assert run("finetune", "--config", masked / "pretrain.yaml") == 2
    assert "task.kind=masked_lm is for `jaxlm pretrain`" in capsys.readouterr().err
    assert run("pretrain", "--config", write_config(tmp_path)) == 2
    assert "task.kind=classification is for `jaxlm finetune`" in capsys.readouterr().err


def test_dry_run_shows_a_row_and_what_is_asked(tmp_path, capsys):
    assert run("pretrain", "--config", write_pretraining(tmp_path, "masked_lm"), "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "documents" in shown and "asked:" in shown and "[MASK]" in shown and "FLOPs per step" in shown
    assert not (tmp_path / "runs/tiny-lm").exists()


def test_layout_of_the_computation_does_not_change_training(masked, tmp_path):
    """The same rows in the same steps give the same losses, whatever the mesh, the micro-batches and the chunks."""
    mesh = ("mesh.preset=fsdp_tp", "mesh.fsdp=2", "mesh.tensor=2", "mesh.data=2")
    other = (f"logging.directory={tmp_path}/runs", "train.grad_accum_steps=2", "model.logits_chunk=2")
    assert run("pretrain", "--config", masked / "pretrain.yaml", *mesh, *other) == 0
    losses = [
        [row["loss"] for row in read_jsonl(folder / "runs/tiny-lm/metrics.jsonl")] for folder in (masked, tmp_path)
    ]
    assert len(losses[0]) > 12
    np.testing.assert_allclose(losses[1], losses[0], atol=5e-5)


def test_mixtures_packing_and_cleaning(tmp_path):
    other = tmp_path / "other.jsonl"
    write_jsonl(other, [{"body": row["text"]} for row in rows(40)])
    train = {
        "mixture": [
            {"path": str(tmp_path / "train.txt"), "documents": "blank_line", "weight": 3},
            {"path": str(other), "rename": {"body": "text"}},
        ]
    }
    path = write_pretraining(tmp_path, "causal_lm")
    config = yaml.safe_load(path.read_text())
    config["data"] |= {"train": train, "concat_documents": True, "clean": {"deduplicate": True}}
    path.write_text(yaml.safe_dump(config))
    assert run("pretrain", "--config", path) == 0
    summary = json.loads((tmp_path / "runs/tiny-lm/summary.json").read_text())
    assert summary["data"]["train"]["documents"] == 100
    assert summary["throughput"]["padding_share"] == 0.0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_tokenizing_saves_what_is_done(tmp_path, monkeypatch, capsys, number):
    monkeypatch.setattr(text_batches, "_BATCH_TEXTS", 2)
    read = text_batches.text_batches

    def interrupted(documents, *args):
        for i, batch in enumerate(read(documents, *args)):
            if i == 5 and documents.name.startswith("data.train"):
                os.kill(os.getpid(), number)
            yield batch

    path = write_pretraining(tmp_path, "causal_lm")
    with monkeypatch.context() as patch:
        patch.setattr("jaxlm.data.corpus.build.text_batches", interrupted)
        assert run("pretrain", "--config", path) == 3
    error = capsys.readouterr().err
    assert f"interrupted: {number.name}: " in error and "are saved; the same command goes on from there" in error
    runs = tmp_path / "runs"
    (building,) = runs.glob(".tokens/*.building")
    assert 0 < (building / "tokens.bin").stat().st_size
    assert len(list(runs.glob(".tokens/*/index.json"))) == 1  # of the validation text, which was whole
    # It goes on, up to a mistake that only what comes after it finds.
    assert run("pretrain", "--config", path, "train.metric=acuracy") == 2
    assert len(list(runs.glob(".tokens/*/index.json"))) == 2
    error = capsys.readouterr().err
    assert "going on after" in error and not list(runs.glob(".tokens/*.building"))


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_a_signal_while_a_vocabulary_is_learned_leaves_none(tmp_path, monkeypatch, capsys, kind):
    path = write_pretraining(tmp_path, "masked_lm", model={"train_tokenizer": {"type": kind, "vocab_size": 200}})
    read = Documents.read

    def interrupted(documents, start=None):
        for i, piece in enumerate(read(documents, start)):
            if i == 5:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    monkeypatch.setattr(Documents, "read", interrupted)
    assert run("pretrain", "--config", path) == 3
    error = capsys.readouterr().err
    assert "interrupted: SIGINT: the vocabulary is not learned yet; the same command starts it again" in error
    assert not (tmp_path / "runs/tiny-lm/tokenizer").exists()
