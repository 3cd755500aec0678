"""A small run of multiple choice: which of three words is in the question."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from helpers.finetuning_runs import write_config, write_jsonl

WORDS = ["sun", "moon", "star", "cloud", "rain"]


def write_choices(folder: Path, **sections: Any) -> Path:
    """A config over train.jsonl, validation.jsonl and test.jsonl in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, number in (("train", 120), ("validation", 20), ("test", 20)):
        rows = []
        for _ in range(number):
            chosen = rng.permutation(WORDS)[:3].tolist()
            right = int(rng.integers(3))
            rows.append({"question": f"the {chosen[right]}", "choices": chosen, "label": right})
        write_jsonl(folder / f"{name}.jsonl", rows)
    path = write_config(folder, data={"max_length": 24}, **sections)
    text = path.read_text().replace("  text: text\n  label: label\n", "  kind: multiple_choice\n")
    path.write_text(text)
    return path
