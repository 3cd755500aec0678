"""Memory of an evaluation: how much a split of many rows takes beyond its table, its examples and its answers."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

from jaxlm.bench.record import Measurement
from jaxlm.config.model import ModelConfig
from jaxlm.config.schema import Config
from jaxlm.data.config import DataConfig
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.sources.table import Table
from jaxlm.inference.trained import make_evaluator
from jaxlm.setup.model import build_model
from jaxlm.setup.setup import Setup, make_context
from jaxlm.tasks.classification import Classification
from jaxlm.tasks.classification_config import ClassificationConfig
from jaxlm.tasks.labels import LabelSet
from jaxlm.tokenizer.stand_in import stand_in_tokenizer

_SIZES = {"num_layers": 1, "embed_dim": 32, "num_heads": 4, "mlp_dim": 64, "max_positions": 64}
_WORDS = 512


def bench_evaluation(*, rows: int) -> Measurement:
    """Evaluates a tiny classifier on rows of four to twelve words.

    Args:
      rows: rows of the split.
    """
    tokenizer = stand_in_tokenizer("bert", _WORDS)
    labels = ClassificationConfig(labels=("no", "yes"))
    config = Config(
        name="bench",
        model=ModelConfig(family="bert", config=_SIZES, tokenizer="none/needed/here"),
        task=labels,
        data=DataConfig(max_length=32),
    )
    task = Classification(labels, make_context(config, tokenizer, None), LabelSet("binary", ("no", "yes")))
    model = build_model(config, task, tokenizer, None)
    split = task.dataset(_table(rows), labelled=True, key="data.test")
    setup = Setup(config, task, tokenizer, {"test": split}, {}, model, None)
    parts = setup.split.split(setup.init_params()[0])
    evaluator = make_evaluator(setup)
    evaluator.evaluate(*parts, _first(split, 512))  # compiles
    before, start = _resident("VmRSS"), time.perf_counter()
    answers = evaluator.evaluate(*parts, split).answers
    seconds, peak = time.perf_counter() - start, _resident("VmHWM")
    held = sum(sys.getsizeof(answer) + sys.getsizeof(answer.kept) for answer in answers)
    grown = {"growth": peak - before, "answers": held, "other": peak - before - held}
    said = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in grown.items())
    table = f"| | resident memory | |\n|---|---|---|\n| {rows:,} rows | {said} | {seconds:.0f} s |"
    return Measurement({"rows": rows, "bytes": grown, "seconds": seconds}, table)


def _table(rows: int) -> Table:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 13, rows)
    made = tuple(
        {"text": " ".join(f"w{word}" for word in rng.integers(0, _WORDS // 2, n)), "label": ("no", "yes")[i % 2]}
        for i, n in enumerate(lengths)
    )
    return Table("bench", ("text", "label"), made, tuple(range(1, rows + 1)))


def _first(split: RowDataset, rows: int) -> RowDataset:
    """The same split, cut: batches have other numbers of rows, but the evaluation's code is warm."""
    examples = split.split
    cut = type(examples)(examples.table, examples.examples[:rows], examples.labels, examples.counts)
    return RowDataset(cut, split.fields)


def _resident(key: str) -> int:
    """Bytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
