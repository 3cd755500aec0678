"""A small run that writes: a word is answered by the word that stands beside it in a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from helpers.finetuning_runs import write_config, write_jsonl

PAIRS = {"sun": "sonne", "moon": "mond", "star": "stern", "rain": "regen", "snow": "schnee"}


def write_pairs(folder: Path, kind: str, family: str, **sections: Any) -> Path:
    """A config over train, validation and test in `folder`, jsonl with columns `en` and `de`, lists of references."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, number in (("train", 96), ("validation", 12), ("test", 9)):
        rows = []
        for _ in range(number):
            words = rng.choice(list(PAIRS), int(rng.integers(1, 4))).tolist()
            right = " ".join(PAIRS[word] for word in words)
            rows.append({"en": " ".join(words), "de": right if name == "train" else [right, "anders"]})
        write_jsonl(folder / f"{name}.jsonl", rows)
    sizes = {"num_layers": 1, "embed_dim": 32, "num_heads": 2, "mlp_dim": 64}
    sizes |= {"head_dim": 16} if family == "t5" else {"max_positions": 64}
    model = {
        "family": family,
        "config": sizes,
        "train_tokenizer": {"type": "byte_bpe", "vocab_size": 300},
        "dropout": 0.0,
    }
    path = write_config(folder, model=model, task={"kind": kind}, data={"max_length": 16}, **sections)
    text = path.read_text().replace("  text: text\n  label: label\n", "  source: en\n  target: de\n")
    path.write_text(text)
    return path
