"""A small run that takes seconds: separable texts, a tiny BERT, the command line in this process."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml

from jaxlm.cli import main

WORDS = {
    "pos": ["good", "great", "fine", "lovely", "superb"],
    "neg": ["bad", "poor", "awful", "dull", "weak"],
}
FILLER = ["the", "film", "was", "a", "story", "of", "and", "with", "acting", "plot", "scene", "in", "all"]


def rows(num: int, seed: int = 0, labels: tuple[str, ...] = ("pos", "neg")) -> list[dict[str, Any]]:
    """Texts of 4 to 14 words, a few of which give the label away."""
    rng = random.Random(seed)
    made = []
    for i in range(num):
        label = labels[i % len(labels)]
        words = [rng.choice(FILLER) for _ in range(rng.randint(3, 12))]
        for _ in range(2):
            words.insert(rng.randint(0, len(words)), rng.choice(WORDS[label]))
        made.append({"text": " ".join(words), "label": label, "id": i})
    return made


def write_jsonl(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return path


def write_config(folder: Path, **sections: Any) -> Path:
    """A config over train.jsonl, validation.jsonl and test.jsonl in `folder`; `sections` replace or extend its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, num) in enumerate({"train": 64, "validation": 21, "test": 19}.items()):
        if not (folder / f"{name}.jsonl").exists():
            write_jsonl(folder / f"{name}.jsonl", rows(num, seed))
    config: dict[str, Any] = {
        "name": "tiny",
        "model": {
            "family": "bert",
            "config": {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64},
            "train_tokenizer": {"vocab_size": 200},
        },
        "task": {"text": "text", "label": "label"},
        "data": {
            **{name: {"path": str(folder / f"{name}.jsonl")} for name in ("train", "validation", "test")},
            "max_length": 48,
        },
        "optimizer": {"learning_rate": 3e-3},
        "train": {"batch_size": 16, "epochs": 2},
        "logging": {"every": 2, "directory": str(folder / "runs"), "tensorboard": False},
    }
    for name, section in sections.items():
        config[name] = {**config[name], **section} if isinstance(section, dict) and name in config else section
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path


def run(*arguments: Any) -> int:
    """Exit status of a `jaxlm` command."""
    return main([str(a) for a in arguments])


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
