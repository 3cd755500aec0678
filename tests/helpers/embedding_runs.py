"""A small run of sentence embeddings: names that go with places, as pairs, triplets or scored pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers.finetuning_runs import write_config, write_jsonl

NAMES = ["anna", "emil", "carl", "dora", "fred", "gina", "hugo", "ines"]
PLACES = ["oslo", "rome", "bonn", "kyiv", "lima", "baku", "nice", "york"]


def embedding_rows(num: int, first: int = 0) -> list[dict[str, Any]]:
    """Anchor, positive, negative, and a second text with its score from 0 to 5."""
    made = []
    for i in range(first, first + num):
        k, other = i % len(NAMES), (i * 3 + 1) % len(NAMES)
        same = i % 2 == 0
        made.append(
            {"anchor": f"where is {NAMES[k]} number {i}", "positive": f"{PLACES[k]} is {i} miles off",
             "negative": f"{PLACES[(k + 3) % 8]} is {i} miles off", "other": f"{PLACES[k if same else other]} {i}",
             "score": 5 if same or other == k else 0}
        )  # fmt: skip
    return made


def write_embedding(folder: Path, task: dict[str, Any] | None = None, **sections: Any) -> Path:
    """A config over train.jsonl, validation.jsonl and test.jsonl in `folder`; pairs, unless `task` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, first, num in (("train", 0, 48), ("validation", 60, 13), ("test", 80, 11)):
        write_jsonl(folder / f"{name}.jsonl", embedding_rows(num, first))
    data = {"max_length": 32, **sections.pop("data", {})}
    settings = {"kind": "embedding", "text": ["anchor", "positive"], **(task or {})}
    path = write_config(folder, task=settings, data=data, **sections)
    path.write_text(path.read_text().replace("  label: label\n", ""))
    return path
