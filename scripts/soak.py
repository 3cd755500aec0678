#!/usr/bin/env python
"""Does damage to runs, caches and files, and fails where it passes unnoticed: `python scripts/soak.py faults`.

Each part makes what it needs in a temporary folder. Exit status 0: nothing was silent, no bare traceback, no hang.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from soaking import checkpoints, documents, full_disk, hostile, kills, rows  # noqa: E402
from soaking.outcomes import Outcomes  # noqa: E402

PARTS = {
    "kills": kills.soak,
    "checkpoints": checkpoints.soak,
    "token cache": documents.soak,
    "full disk": full_disk.soak,
    "rows": rows.soak,
    "checkpoint files": hostile.soak_checkpoint_files,
    "tokenizers and configs": hostile.soak_tokenizers_and_configs,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite", choices=("faults",))
    parser.add_argument("--part", choices=PARTS, action="append", help="only this; may be given several times")
    options = parser.parse_args()
    faults, began = 0, time.monotonic()
    for name in options.part or PARTS:
        outcomes, start = Outcomes(), time.monotonic()
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            PARTS[name](Path(folder), outcomes)
        print(f"{name}: {outcomes.summary()}; {time.monotonic() - start:.0f} s", flush=True)
        for fault in outcomes.faults:
            print(f"  FAULT {fault}", flush=True)
        faults += len(outcomes.faults)
    print(f"{faults} faults in {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
