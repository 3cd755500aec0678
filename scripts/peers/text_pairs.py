"""Sources and targets in files, and model inputs of them, as the peers of tasks that write read them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import NamedTuple


class Pair(NamedTuple):
    """A source, and one target or several."""

    source: str
    targets: list[str]


def read_pairs(path: Path, target: Path | None, columns: tuple[str, str], prefix: str = "") -> list[Pair]:
    """The rows of a jsonl file, or of two files whose lines belong together."""
    text = path.read_text(encoding="utf-8")
    if target is not None:
        lines = target.read_text(encoding="utf-8").splitlines()
        return [Pair(prefix + source, [line]) for source, line in zip(text.splitlines(), lines, strict=True)]
    pairs = []
    for row in map(json.loads, filter(str.strip, text.split("\n"))):
        source, targets = (row[name] for name in columns)
        source = " ".join(source) if isinstance(source, list) else source
        pairs.append(Pair(prefix + source, targets if isinstance(targets, list) else [targets]))
    return pairs


def add_pair_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-target", type=Path, help="the file of targets where --train is one of sources")
    parser.add_argument("--validation-target", type=Path)
    parser.add_argument("--columns", nargs=2, default=("source", "target"), help="of jsonl files")
    parser.add_argument("--prefix", default="", help="what each source begins with")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--max-target-length", type=int, help="absent: --max-length")
