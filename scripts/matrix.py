"""Compiles every task of every family under every mesh preset with the real TPU compiler; needs no TPU.

    python scripts/matrix.py [FAMILY ...]        (needs the `tpu` extra; without families some 40 minutes on two cores)

The tests compile pairs of them that differ (marker `tpu_aot`). Run it after changes of sharding, attention or layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from helpers.tpu_matrix import TASKS, case, cases, check, compile_all  # noqa: E402

PODS = ("v5p:4x4x4", "v6e:16x16")
ON_PODS = (("bert", "masked_lm"), ("llama", "causal_lm"), ("t5", "span_corruption"))

failed = False
for family in sys.argv[1:] or TASKS:
    wanted = cases(family) + [
        case(*pair, "fsdp", topology=pod) for pair in ON_PODS if pair[0] == family for pod in PODS
    ]
    try:
        check(compile_all(wanted))
    except AssertionError as error:
        failed = True
        print(f"{family}: {error}")
    else:
        print(f"{family}: {len(wanted)} programs are as expected", flush=True)
sys.exit(failed)
