"""A small tagging run that takes seconds: sentences whose entities are told by their words."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from helpers.finetuning_runs import FILLER, write_config

ENTITIES = {"PER": (["anna", "emil", "carl"], ["berg", "lund"]), "LOC": (["paris", "rome", "oslo"], ["city", "bay"])}
"""First and second words."""


def sentences(num: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Words and BIO tags; entities have one or two words."""
    rng = random.Random(seed)
    made = []
    for _ in range(num):
        words, tags = [], []
        for _ in range(rng.randint(2, 5)):
            words.append(rng.choice(FILLER))
            tags.append("O")
            if rng.random() < 0.6:
                label = rng.choice(list(ENTITIES))
                length = rng.randint(1, 2)
                words += [rng.choice(part) for part in ENTITIES[label]][:length]
                tags += [f"B-{label}", f"I-{label}"][:length]
        made.append((words, tags))
    return made


def write_conll(path: Path, content: list[tuple[list[str], list[str]]]) -> Path:
    lines = ["\n".join(f"{w}\t{t}" for w, t in zip(words, tags, strict=True)) for words, tags in content]
    path.write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_tagging(folder: Path, **sections: Any) -> Path:
    """A config over train.conll, validation.conll and test.conll in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, num) in enumerate({"train": 96, "validation": 21, "test": 19}.items()):
        write_conll(folder / f"{name}.conll", sentences(num, seed))
    data = {name: {"path": str(folder / f"{name}.conll")} for name in ("train", "validation", "test")}
    task = {"kind": "tagging", **sections.pop("task", {})}
    path = write_config(folder, task=task, data={**data, **sections.pop("data", {})}, **sections)
    text = path.read_text().replace("task:\n  text: text\n  label: label\n", "task:\n")
    path.write_text(text, encoding="utf-8")
    return path
