"""Compiles the rows of the table in docs/guides/scaling.md anew and writes what they say now into their place.

    python scripts/scaling_table.py [TEXT ...]     (needs the `tpu` extra, for GPU rows `cuda`; minutes a row)

Each row is `--dry-run --topology` of the config, the overrides and the topology that stand in it. With TEXT, only rows
that hold one of the texts, such as `bert_large` or `v5e:`. A row is written when it is done.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PAGE = REPOSITORY / "docs" / "guides" / "scaling.md"
ROW = re.compile(r"\| `(?P<config>\w+)(?P<overrides>(?: \S+=\S+)*)` \| (?P<topology>\w+:[\dx*]+) \|.*")


def new_row(row: re.Match[str], report: str) -> str:
    """Returns a row of the table from the report of a dry run."""

    def find(pattern: str) -> tuple[str, ...]:
        found = re.search(pattern, report, re.M)
        return found.groups() if found else ()

    (mesh,) = find(r"^mesh +([^(;\n]+?) *(?:[(;].*)?$")
    rows, length, micro = map(int, find(r"^batch +rows \[(\d+)\] x length \[(\d+)\], (\d+) micro"))
    state = (find(rf"^{name} +([\d.]+) GiB")[0] for name in ("parameters", "optimizer state"))
    cells = [mesh, f"{rows * length / 1e6:.2g} M / {micro}", ", ".join(f"{float(size):.2f}" for size in state)]
    if peak := find(r"^peak +([\d.]+) GiB"):
        fits, share = find(r"^fits +(\w+): (\d+%)")
        kinds = re.findall(r"^(?:collectives)? +([\w -]+): ([\d,]+) a step, ([\d.]+) GiB", report, re.M)
        total, compute, communication = map(
            float, find(r"^step time +([\d.]+) s, .* computing ([\d.]+) s .* communicating ([\d.]+) s")
        )
        cells += [
            f"{float(peak[0]):.1f}",
            f"yes, {share}" if fits == "yes" else "no",
            ", ".join(f"{kind} {number} ({float(size):.1f})" for kind, number, size in kinds) or "none",
            f"{total:.3g} s: {compute:.3g} + {communication:.2g}",
            *find(r"^utilization +([\d.]+%)"),
        ]
    else:
        cells += ["over", "no", "", "", ""]
    first = f"| `{row['config']}{row['overrides']}` | {row['topology']} | "
    return first + " | ".join(cells).replace("|  |", "| |").replace("|  |", "| |").rstrip() + " |"


def main(wanted: list[str]) -> int:
    """Compiles the rows that hold one of `wanted`; returns how many failed."""
    failed = 0
    for row in [found for line in PAGE.read_text(encoding="utf-8").splitlines() if (found := ROW.fullmatch(line))]:
        if wanted and not any(text in row[0] for text in wanted):
            continue
        arguments = ["--dry-run", "--topology", row["topology"], *row["overrides"].split()]
        config = f"configs/pretrain/{row['config']}.yaml"
        done = subprocess.run(
            [sys.executable, "scripts/pretrain.py", "--config", config, *arguments],
            cwd=REPOSITORY, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            failed += 1
            print(f"{row['config']} {row['topology']}: {done.stderr.strip()[-500:]}", flush=True)
            continue
        changed = new_row(row, done.stdout)
        PAGE.write_text(PAGE.read_text(encoding="utf-8").replace(row[0], changed), encoding="utf-8")
        print(changed, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
