"""What a run says of its own choices."""

from __future__ import annotations

from helpers.finetuning_runs import run, write_config


def test_a_dry_run_says_what_it_chose_and_why(tmp_path, capsys):
    config = write_config(tmp_path, train={"epochs": None})
    assert run("finetune", "--config", config, "--dry-run") == 0
    out = capsys.readouterr().out
    chosen = [" ".join(line.split()[1:]) for line in out.splitlines() if line.startswith("chosen ")]
    assert chosen[0].startswith("data.packing=true: several examples to a row, kept apart by masks; ")
    assert chosen[1] == "length: 12 steps, 3 epochs of 4, since neither train.epochs nor train.steps is given"
    assert chosen[2:] == [
        "train.metric: accuracy, the first of the task's",
        "model.attention: xla, on a cpu",
        "model.unroll: all layers, faster steps on a cpu",
    ]
    assert "; positive: pos" in out
