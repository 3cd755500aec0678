"""`--dry-run` compiles one step, reports, and leaves nothing behind."""

from __future__ import annotations

import re

from helpers.finetuning_runs import run, write_config

SIZES = {"embed_dim": 256, "num_heads": 4, "mlp_dim": 512, "num_layers": 2, "max_positions": 64}
"""Large enough for three decimals of a GiB."""
MEMORY = ("parameters", "optimizer state", "temporaries", "peak")


def gib(shown: str, name: str) -> float:
    return float(re.search(rf"^{name} +([\d.]+) GiB per device", shown, re.M).group(1))


def test_report(tmp_path, capsys):
    path = write_config(tmp_path, model={"config": SIZES})
    assert run("finetune", "--config", path, "--dry-run", "train.batch_size=72", "model.unroll=1") == 0
    shown, said = capsys.readouterr()
    assert "batch_size: 72" in shown  # resolved
    assert "train.batch_size=72 is more than the training data, 64 rows: an epoch is one step" in said
    number = int(re.search(r"bert, ([\d,]+) parameters", shown).group(1).replace(",", ""))
    vocab = int(re.search(r"vocab_size: (\d+)", shown).group(1))
    assert vocab == 200
    # By hand, less the vocabulary that the tokenizer decides: positions, types, norms, 2 layers, pooler, classifier.
    D, F = 256, 512
    layer = 4 * (D * D + D) + D * F + F + F * D + D + 4 * D
    rest = 64 * D + 2 * D + 2 * D + 2 * layer + D * D + D + 2 * D + 2
    assert (number - rest) % D == 0 and 0 < (number - rest) // D <= 200
    assert re.search(r"FLOPs per step +[\d.]+ G", shown)
    parameters, state, temporaries, peak = (gib(shown, name) for name in MEMORY)
    assert peak >= state + temporaries and state >= parameters > 0
    assert re.search(r"mesh +ddp: data 8 \(auto: state of 0.0\d GiB per device within 50% of 16 GiB", shown)
    row = re.search(r"  1  example \d+, (\d+) tokens, label (pos|neg): (\[CLS\] .* \[SEP\])", shown)
    assert row and not (tmp_path / "runs").exists()


def test_metrics_and_batches_are_checked_too(tmp_path, capsys):
    path = write_config(tmp_path)
    assert run("finetune", "--config", path, "--dry-run", "train.metric=acc") == 2
    assert "train.metric=acc: expected one of accuracy, loss" in capsys.readouterr().err
    assert run("finetune", "--config", path, "--dry-run", "model.attention=cudnn") == 2
    assert "cuDNN is of GPUs, and this is a cpu" in capsys.readouterr().err


def test_a_state_in_host_memory_takes_none_of_the_device(tmp_path, capsys):
    path = write_config(tmp_path, model={"config": {**SIZES, "num_layers": 1}}, mesh={"preset": "ddp"})
    assert run("finetune", "--config", path, "--dry-run", "optimizer.offload=true", "model.unroll=1") == 0
    shown = capsys.readouterr().out
    assert gib(shown, "parameters") > 0 and gib(shown, "optimizer state") == 0
    assert re.search(r"^optimizer state .* in host memory$", shown, re.M)
