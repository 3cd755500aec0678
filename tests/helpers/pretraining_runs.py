"""Small pretraining runs that take seconds: texts of a few words, tiny models, the command line in this process."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml
from helpers.finetuning_runs import FILLER, WORDS

TINY = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}
MODELS: dict[str, dict[str, Any]] = {
    "masked_lm": {"family": "bert", "config": TINY, "train_tokenizer": {"vocab_size": 200, "min_frequency": 1}},
    "replaced_tokens": {
        "family": "electra",
        "config": {**TINY, "table_dim": 16},
        "train_tokenizer": {"vocab_size": 200, "min_frequency": 1},
    },
    "causal_lm": {"family": "gpt2", "config": TINY, "train_tokenizer": {"type": "char"}},
    "span_corruption": {
        "family": "t5",
        "config": {
            "num_layers": 1,
            "embed_dim": 32,
            "num_heads": 4,
            "head_dim": 8,
            "mlp_dim": 64,
            "gated": True,
            "activation": "gelu_new",
            "tied": False,
        },
        "train_tokenizer": {"type": "unigram", "vocab_size": 250},
    },
    "prefix_lm": {"family": "gpt2", "config": TINY, "train_tokenizer": {"type": "char"}},
}


def stories(number: int, seed: int = 0) -> str:
    """Documents of 3 to 40 words, parted by blank lines."""
    rng = random.Random(seed)
    words = [*FILLER, *WORDS["pos"], *WORDS["neg"]]
    made = [" ".join(rng.choice(words) for _ in range(rng.randint(3, 40))) for _ in range(number)]
    return "\n\n".join(made) + "\n"


def write_pretraining(folder: Path, kind: str, **sections: Any) -> Path:
    """A config over train.txt and validation.txt in `folder`; `sections` extend its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, number) in enumerate({"train": 60, "validation": 12}.items()):
        if not (folder / f"{name}.txt").exists():
            (folder / f"{name}.txt").write_text(stories(number, seed), encoding="utf-8")
    config: dict[str, Any] = {
        "name": "tiny-lm",
        "model": MODELS.get(kind, {}),
        "task": {"kind": kind},
        "data": {
            **{
                name: {"path": str(folder / f"{name}.txt"), "documents": "blank_line"}
                for name in ("train", "validation")
            },
            "max_length": 32,
        },
        "optimizer": {"learning_rate": 3e-3},
        "train": {"batch_size": 8, "steps": 12, "eval_every": 6},
        "logging": {"every": 3, "directory": str(folder / "runs"), "tensorboard": False},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "pretrain.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
