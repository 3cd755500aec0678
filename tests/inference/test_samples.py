"""samples.jsonl: lines end at line feeds alone, and one that is damaged costs no run."""

from __future__ import annotations

from helpers.finetuning_runs import read_jsonl

from jaxlm.inference.samples import FILE, save_samples
from jaxlm.run.run_dir import RunDir


def sample(step: int) -> dict:
    return {"step": step, "prompt": "a\u2028b", "text": f"\x85 \x1c {step} \x0b"}


def test_texts_may_hold_what_other_tools_take_for_line_ends(tmp_path, caplog):
    run = RunDir(tmp_path)
    for step in (10, 20, 30, 20):  # the last after a resume from step 10
        save_samples(run, [sample(step), sample(step)])
    assert read_jsonl(tmp_path / FILE) == [sample(10)] * 2 + [sample(20)] * 2
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": \n[]\n')
    save_samples(run, [sample(30)])
    assert read_jsonl(tmp_path / FILE) == [sample(10)] * 2 + [sample(20)] * 2 + [sample(30)]
    assert f"{tmp_path / FILE}: 2 lines are damaged" in caplog.text
