"""`--dry-run` compiles one step, reports, and leaves nothing behind."""

from __future__ import annotations

import re

from helpers.finetuning_runs import run, write_config


def test_report(tmp_path, capsys):
    path = write_config(tmp_path)
    assert run("finetune", "--config", path, "--dry-run", "train.batch_size=8") == 0
    shown = capsys.readouterr().out
    assert "batch_size: 8" in shown  # resolved
    number = int(re.search(r"bert, ([\d,]+) parameters", shown).group(1).replace(",", ""))
    vocab = int(re.search(r"vocab_size: (\d+)", shown).group(1))
    assert vocab == 200
    # By hand, less the vocabulary that the tokenizer decides: positions, types, norms, 2 layers, pooler, classifier.
    layer = 4 * (32 * 32 + 32) + 32 * 64 + 64 + 64 * 32 + 32 + 4 * 32
    rest = 64 * 32 + 2 * 32 + 2 * 32 + 2 * layer + 32 * 32 + 32 + 2 * 32 + 2
    assert (number - rest) % 32 == 0 and 0 < (number - rest) // 32 <= 200
    assert re.search(r"FLOPs per step +[\d.]+ G", shown)
    assert "peak" in shown and "optimizer state" in shown
    assert re.search(r"mesh +ddp: data 8 \(auto: state of 0.00 GiB per device within 50% of 16 GiB", shown)
    row = re.search(r"  1  row \d+, (\d+) tokens, label (pos|neg): (\[CLS\] .* \[SEP\])", shown)
    assert row and not (tmp_path / "runs").exists()


def test_a_state_in_host_memory_takes_none_of_the_device(tmp_path, capsys):
    larger = {"embed_dim": 256, "num_heads": 4, "mlp_dim": 512, "num_layers": 3, "max_positions": 64}
    path = write_config(tmp_path, model={"config": larger}, mesh={"preset": "fsdp"})
    for offload in (False, True):
        assert run("finetune", "--config", path, "--dry-run", f"optimizer.offload={offload}") == 0
        parameters, state, where = re.search(
            r"parameters +(\d\.\d+) GiB.*\noptimizer state +(\d\.\d+) GiB per device(.*)", capsys.readouterr().out
        ).groups()
        assert (float(state) == 0.0 and "host memory" in where) if offload else (float(state) >= float(parameters) > 0)
