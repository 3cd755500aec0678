"""Benchmarks of training: what one measurement counts, and what the peer may be measured on."""

from __future__ import annotations

import json
import re

import pytest
from helpers.finetuning_runs import FILLER, WORDS, rows, run
from helpers.hf_folders import write_checkpoint
from helpers.tiny_models import tiny

from jaxlm.bench import config_speed, finetune, harness
from jaxlm.bench.startup import bench_startup
from jaxlm.errors import RunFailure
from jaxlm.tokenizer.config import TokenizerTrainingConfig
from jaxlm.tokenizer.training import train_tokenizer

EXAMPLES = 96


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Arguments of a benchmark: a tiny BERT of whole words and a TSV of whole batches."""
    folder = tmp_path_factory.mktemp("bench")
    lines = [f"{row['text']}\t{row['label']}\n" for row in rows(EXAMPLES)]
    (folder / "train.tsv").write_text("".join(lines), encoding="utf-8")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *FILLER, *WORDS["pos"], *WORDS["neg"]]
    model = tiny("bert", vocab_size=len(vocabulary), max_positions=128, dropout=0.0, attention_dropout=0.0)
    write_checkpoint(folder / "model", {"model_type": "bert", **model.family.to_hf(model.config)}, "classification")
    (folder / "model" / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return ["bench", "--model", folder / "model", "--train", folder / "train.tsv", "--steps", 2, "--warmup", 1]


def test_a_measurement(job, capsys):
    assert run(*job, "--worker", "--order", "balanced") == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["examples_per_second"] > 0
    tokens = sum(len(row["text"].split()) + 2 for row in rows(EXAMPLES)) / EXAMPLES
    # Balanced batches differ little in tokens; an epoch is of three.
    assert figures["tokens_per_second"] / figures["examples_per_second"] == pytest.approx(tokens, rel=0.05)
    assert 0 <= figures["padding_share"] < 0.4


@pytest.mark.parametrize("steps", [1, 40, 75])
def test_the_peer_is_measured_on_whole_mega_batches(job, steps, capsys):
    assert run(*job, "--peer", "--steps", steps) == 2
    assert f"--steps {steps}: expected a multiple of 50" in capsys.readouterr().err


def test_an_evaluation_holds_little_beyond_its_answers(capsys):
    """The figure itself, of 200,000 rows, is in docs/benchmarks.md."""
    assert run("bench", "--suite", "evaluation", "--rows", 3000) == 0
    found = re.search(r"3,000 rows \| growth (-?\d+) MiB, answers (\d+) MiB", capsys.readouterr().out)
    assert int(found.group(1)) < 200


def test_rows_become_batches(job, tmp_path, capsys):
    kept = tmp_path / "rows.json"
    assert run(*job, "--suite", "rows", "--rows", 500, "--max-length", 64, "--out", kept) == 0
    said = capsys.readouterr().out
    record = json.loads(kept.read_text())
    assert record["suite"] == "rows" and record["machine"]["device"] and record["table"] in said
    tokens = sum(len(rows(EXAMPLES)[i % EXAMPLES]["text"].split()) + 2 for i in range(500))
    assert f"500 texts, {tokens:,} tokens; a batch is made in " in said
    assert record["figures"]["tokens"] == tokens and record["figures"]["tokens_per_second"]["training step"] > 0
    assert len(re.findall(r"\| [\d,]+ \|\n", said)) == 4


def test_the_training_of_a_config(job, tmp_path, capsys):
    folder = job[job.index("--model") + 1].parent
    train = {"path": str(folder / "train.tsv"), "columns": ["text", "label"]}
    task, data = {"text": "text", "label": "label"}, {"train": train}
    settings = {"name": "spam", "model": {"init": str(folder / "model")}, "task": task, "data": data}
    config = tmp_path / "spam.yaml"
    settings |= {"train": {"epochs": 9}, "optimizer": {"warmup": 50}}  # longer than what is timed
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = ["bench", "--suite", "config", "--config", config, "--steps", 2, "--warmup", 1]
    assert run(*command, "--worker") == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["examples_per_second"] > 0
    assert run(*command, "--peer") == 2
    assert "task.kind=classification has no peer; expected one of tagging" in capsys.readouterr().err
    assert run("bench", "--suite", "config") == 2
    assert "--suite config: needs --config FILE" in capsys.readouterr().err


def test_pretraining_of_a_config_and_its_peer(tmp_path, capsys, monkeypatch):
    (tmp_path / "train.txt").write_text("a fox in the box and a box in the fox\n" * 50)
    sizes = {"num_layers": 1, "num_heads": 2, "embed_dim": 16, "mlp_dim": 32, "max_positions": 8, "dropout": 0.0}
    model = {"family": "gpt2", "config": sizes, "train_tokenizer": {"type": "char"}}
    settings = {
        "name": "gpt", "model": model, "task": {"kind": "causal_lm"},
        "data": {"train": {"path": str(tmp_path / "train.txt")}, "max_length": 8, "concat_documents": True},
        "train": {"batch_size": 8, "steps": 9}, "optimizer": {"warmup": 2},
        "logging": {"directory": str(tmp_path / "runs")},
    }  # fmt: skip
    path = tmp_path / "gpt.yaml"

    def bench(*options):
        path.write_text(json.dumps(settings), encoding="utf-8")
        return run("bench", "--suite", "config", "--config", path, "--steps", 2, "--warmup", 1, *options)

    assert bench("--worker") == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["tokens_per_second"] > 0 and "examples_per_second" not in figures
    asked = []
    monkeypatch.setattr(harness, "find_spec", lambda _: True)

    def measured(command, environ):
        asked.append(command)
        return {"tokens_per_second": 30.0 / len(asked), "padding_share": 0.0}

    monkeypatch.setattr(config_speed, "run_measurement", measured)
    monkeypatch.setattr(config_speed, "cpu_multiplies_bfloat16", bool)  # which measures products of float32 besides
    assert bench("--peer", "--rounds", 1) == 0
    said = capsys.readouterr().out
    assert "tokens/s" in said and "| torch | 15.0 | 0.0% | 2.00 |" in said and "| torch, compiled | 10.0 |" in said
    given = asked[1][2:]
    assert given[given.index("--embed-dim") + 1] == "16" and given[given.index("--steps") + 1] == "3"
    settings["model"] = {**model, "config": {**sizes, "dropout": 0.0}}
    del settings["model"]["config"]["mlp_dim"]
    assert bench("--peer") == 2
    assert "expected mlp_dim in model.config" in capsys.readouterr().err
    settings["model"] = {"family": "lstm", "train_tokenizer": {"type": "char"}}
    assert bench("--peer") == 2
    assert "pretraining has a peer for model.family=gpt2" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, message",
    [
        (["--steps", "0"], "--steps: expected a whole number above 0"),
        (["--warmup", "-1"], "--warmup: expected a whole number, 0 or more"),
        (["--suite", "startup", "--rounds", "0"], "--rounds: expected a whole number above 0"),
        (["--suite", "corpus", "--gigabytes", "0"], "--gigabytes: expected a number above 0"),
        (["--suite", "rows", "--train", "."], "--train: no file ."),
        (["--suite", "rows", "--log", "x.csv"], "--suite rows: takes no --log"),
        (["--suite", "scaling", "--peer"], "takes no --peer; expected --suite finetune or config or generation"),
        (["--suite", "startup", "--dtype", "bfloat16"], "--suite startup: takes no --dtype"),
        (["--out", "nowhere/x.json"], "--out nowhere/x.json: there is no folder nowhere"),
        (["--log", "."], "--log .: is a folder"),
        (["--suite", "config", "--config", "nope.yaml"], "nope.yaml"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(job, options, message, capsys):
    try:
        status = run(*job, *options)
    except SystemExit as end:  # argparse
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err


def test_rows_that_cannot_be_read_are_named(job, tmp_path, capsys):
    empty = tmp_path / "empty.tsv"
    empty.write_text("")
    assert run(*job, "--suite", "rows", "--train", empty) == 2
    said = capsys.readouterr().err
    assert str(empty) in said and "/train.tsv" not in said


def test_a_peer_that_is_not_installed(job, monkeypatch, capsys):
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    monkeypatch.setattr(finetune, "run_measurement", lambda *_: pytest.fail("measured before"))
    assert run(*job, "--peer", "--steps", 50) == 2
    assert "--peer: needs torch, transformers, accelerate: pip install 'jaxlm[parity]'" in capsys.readouterr().err


def test_a_failure_says_what_was_measured_before(job, monkeypatch, capsys):
    def measured(command, environ):
        if "--no-packing" in command:
            raise RunFailure("out of memory")
        return {"examples_per_second": 12.5, "padding_share": 0.1}

    monkeypatch.setattr(finetune, "run_measurement", measured)
    assert run(*job, "--rounds", 1) == 1
    said = capsys.readouterr().err
    assert "out of memory" in said and '"jaxlm packed, balanced order": [{"examples_per_second": 12.5' in said


def test_texts_that_a_model_writes(tmp_path, capsys):
    folder, texts = tmp_path / "writer", tmp_path / "texts.jsonl"
    model = tiny("gpt2")
    config = {"model_type": "gpt2", **model.family.to_hf(model.config), "eos_token_id": 0, "bos_token_id": 0}
    write_checkpoint(folder, {**config, "architectures": ["GPT2LMHeadModel"]}, "causal_lm")
    train_tokenizer(["a fox in the box"], TokenizerTrainingConfig(type="char", family="gpt2")).save(folder)
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a fox", "in", "the box")))
    command = ["bench", "--suite", "generation", "--model", folder, "--max-new-tokens", 4, "--num-beams", 2, "--input"]
    assert run(*command, texts, "--worker", "--texts", 2) == 0
    figures = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert figures["texts_per_second"] == pytest.approx(2 / figures["seconds"])
    texts.write_text('{"words": "a"}\n')
    assert run(*command, texts) == 2
    assert 'texts.jsonl: expected rows of {"text": ...}' in capsys.readouterr().err
    texts.write_text("text,label\na fox,1\n")
    assert run(*command, texts) == 2
    assert 'texts.jsonl: expected rows of {"text": ...}' in capsys.readouterr().err
    assert run(*command, tmp_path / "absent") == 2
    assert "--input: no file" in capsys.readouterr().err


def test_figures_are_kept(job, tmp_path, monkeypatch, capsys):
    """Ratios are taken round by round; the file of lines grows."""
    speeds = iter([10.0, 5.0, 8.0, 30.0, 10.0, 6.0])  # two rounds of three contenders

    def measured(command, environ):
        return {"examples_per_second": next(speeds), "padding_share": 0.1}

    monkeypatch.setattr(finetune, "run_measurement", measured)
    monkeypatch.setattr(finetune, "cpu_multiplies_bfloat16", bool)  # which measures products of float32 besides
    kept, lines = tmp_path / "figures.json", tmp_path / "lines.csv"
    command = [*job, "--rounds", 2, "--out", kept, "--log", lines]
    assert run(*command) == 0
    assert "| jaxlm padded | 6.0, 7.0, 8.0 | 10.0% | 3.12 |" in capsys.readouterr().out
    record = json.loads(kept.read_text())
    assert record["ratios"]["jaxlm padded"] == pytest.approx((10 / 8 + 30 / 6) / 2)
    assert [one["examples_per_second"] for one in record["results"]["jaxlm packed, random order"]] == [5.0, 10.0]
    assert (
        record["command"].startswith("jaxlm bench --model")
        and record["packages"]["jax"]
        and record["machine"]["device"]
    )
    speeds = iter([10.0, 5.0, 8.0, 30.0, 10.0, 6.0])
    lines.write_text(lines.read_text().rstrip("\n"))  # by an editor, for instance
    assert run(*command) == 0
    header, *rows = lines.read_text().splitlines()
    assert header == "date,commit,machine,suite,measured,contender,ratio" and len(rows) == 4
    line = f'finetune,"model on {job[4].parent.name}, float32",jaxlm padded,3.125'
    assert rows[0] == rows[2] and rows[1].endswith(line)


@pytest.mark.slow
def test_a_start_with_and_without_compiled_programs(job):
    model, train = job[2], job[4]
    found = bench_startup({"init": str(model)}, str(train), rounds=1)
    empty, filled = re.findall(r"the step is (?:compiled|found) \| ([\d.]+), ", found.table)
    assert float(empty) > 0 and float(filled) > 0
    assert [len(seconds) for seconds in found.figures["seconds"].values()] == [1, 1]
