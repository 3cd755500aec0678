"""Examples of given lengths, and packed batches taken apart again."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.sources.table import Table
from jaxlm.fields import Field

ROW = 48


LENGTHS = {
    "uniform": lambda rng: rng.integers(1, ROW + 1, 70),
    "short": lambda rng: rng.integers(1, 6, 90),
    "skewed": lambda rng: np.clip(rng.lognormal(2.5, 0.7, 100), 3, ROW),
    "all equal": lambda rng: np.full(50, 17),
    "just over half": lambda rng: np.full(40, ROW // 2 + 1),
    "exactly a row": lambda rng: np.full(20, ROW),
    "one": lambda rng: np.array([5]),
    "one full row": lambda rng: np.array([ROW]),
    "none": lambda rng: np.array([]),
}


def lengths_of(kind: str, seed: int = 0) -> np.ndarray:
    return LENGTHS[kind](np.random.default_rng(seed)).astype(np.int64)


def make_examples(lengths, *, label=lambda i: np.asarray(i, np.int32)) -> list[Example]:
    """Examples whose every token tells which example and column it is; token 0 occurs too, as padding does."""
    return [
        Example(
            {
                "tokens": (np.arange(n) + 1000 * i).astype(np.int32),
                "token_types": (np.arange(n) >= n // 2).astype(np.int32),
                "slot_positions": np.asarray(0, np.int32),
                "labels": label(i),
            },
            row=i,
            weight=1.0 + i,
        )
        for i, n in enumerate(lengths)
    ]


def fields_of(examples: Sequence[Example]) -> tuple[Field, ...]:
    """The fields of `make_examples`."""
    label = examples[0].arrays["labels"] if examples else np.zeros((), np.int32)
    return (
        Field("token_types", "token"),
        Field("slot_positions", "position"),
        Field("labels", "slot", label.dtype, label.shape),
    )


def dataset_of(examples: Sequence[Example]) -> RowDataset:
    """A split of which each example is a row."""
    rows = tuple({} for _ in examples)
    table = Table("rows", (), rows, tuple(range(1, len(rows) + 1)))
    return RowDataset(Examples(table, examples, [None] * len(rows), {}), fields_of(examples))


def unpack(batch) -> list[dict]:
    """What a batch holds, read off its arrays slot by slot."""
    found = []
    num_rows, slots = batch["weights"].shape
    for row, slot in itertools.product(range(num_rows), range(slots)):
        columns = np.flatnonzero(batch["segment_ids"][row] == slot + 1)
        if not columns.size:
            assert batch["examples"][row, slot] == -1
            assert batch["weights"][row, slot] == batch["slot_positions"][row, slot] == 0
            assert not batch["labels"][row, slot].any()
            continue
        assert batch["slot_positions"][row, slot] == columns[0]
        np.testing.assert_array_equal(columns, columns[0] + np.arange(len(columns)))  # contiguous
        np.testing.assert_array_equal(batch["positions"][row, columns], np.arange(len(columns)))
        found.append(
            {
                "tokens": batch["tokens"][row, columns],
                "token_types": batch["token_types"][row, columns],
                "labels": batch["labels"][row, slot],
                "index": int(batch["examples"][row, slot]),
                "weight": float(batch["weights"][row, slot]),
            }
        )
    return found


def assert_same(found: list[dict], examples: list[Example]) -> None:
    """`found` holds exactly `examples`, in any order, bit for bit."""
    assert Counter(f["index"] for f in found) == Counter(range(len(examples)))
    for f in found:
        expected = examples[f["index"]]
        for name in ("tokens", "token_types", "labels"):
            np.testing.assert_array_equal(f[name], expected.arrays[name])
        assert f["weight"] == expected.weight
