"""The table of docs/guides/scaling.md is what dry runs say: `scripts/scaling_table.py` writes a report as a row."""

from __future__ import annotations

import runpy

from helpers.paths import REPOSITORY

REPORT = """model            bert, 335,174,458 parameters
mesh             fsdp: fsdp 8
batch            rows [256] x length [512], 2 micro-batch(es)
parameters       0.157 GiB per device
optimizer state  0.314 GiB per device
temporaries      13.282 GiB per device (gradients and activations)
peak             13.795 GiB per device
fits             yes: 86% of 16 GiB
collectives      all-gather: 1,386 a step, 1.399 GiB received per device
                 all-reduce across slices: 98 a step, 0.752 GiB received per device
step time        0.4718 s, estimated: computing 0.4599 s (the compiler's cycles), communicating 0.0165 s
utilization      34.1% of 197 TFLOP/s
"""


def test_rows_from_reports():
    script = runpy.run_path(str(REPOSITORY / "scripts/scaling_table.py"))
    row = script["ROW"].fullmatch("| `bert_large mesh.preset=fsdp` | v5e:2x4*2 | whatever | it | said |")
    first = "| `bert_large mesh.preset=fsdp` | v5e:2x4*2 | fsdp: fsdp 8 | 0.13 M / 2 | 0.16, 0.31 | "
    assert script["new_row"](row, REPORT) == (
        f"{first}13.8 | yes, 86% | all-gather 1,386 (1.4), all-reduce across slices 98 (0.8) | "
        "0.472 s: 0.46 + 0.017 | 34.1% |"
    )
    lines = REPORT.splitlines()[:5]
    none = "\n".join([*lines, "peak             more than there is", "fits             NO: no room"])
    assert script["new_row"](row, none) == f"{first}over | no | | | |"


def test_the_page_has_rows_of_every_kind_of_config():
    script = runpy.run_path(str(REPOSITORY / "scripts/scaling_table.py"))
    rows = [row for line in script["PAGE"].read_text().splitlines() if (row := script["ROW"].fullmatch(line))]
    assert {row["config"] for row in rows} >= {"bert_large", "t5_xl", "llama_1b", "llama_7b", "llama_70b"}
