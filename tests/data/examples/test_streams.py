"""Rows of two streams: whatever is packed fits both, and segments of equal number belong together."""

from __future__ import annotations

import numpy as np
import pytest

from jaxlm.data.dataset import BatchLayout
from jaxlm.data.examples.dataset import RowDataset
from jaxlm.data.examples.example import Example, Examples
from jaxlm.data.examples.streams import streams_of
from jaxlm.data.sources.table import Table
from jaxlm.fields import EXAMPLES, Field

FIELDS = (Field("labels", "token", stream="decoder_"), Field("weights", "token", np.float32, stream="decoder_"))
KINDS = {
    "alike": lambda rng: (n := rng.integers(1, 40, 90), np.maximum(1, n + rng.integers(-3, 4, 90))),
    "short targets": lambda rng: (rng.integers(20, 60, 70), rng.integers(1, 6, 70)),
    "long targets": lambda rng: (rng.integers(1, 4, 50), rng.integers(20, 50, 50)),
    "one long target": lambda rng: (np.full(40, 5), np.append(np.full(39, 2), 60)),
    "one": lambda rng: (np.array([3]), np.array([1])),
}


def dataset(kind: str) -> RowDataset:
    lengths = KINDS[kind](np.random.default_rng(0))
    made = []
    for i, (read, written) in enumerate(zip(*lengths, strict=True)):
        target = (1000 * i + np.arange(written)).astype(np.int32)
        arrays = {
            "tokens": (1000 * i + np.arange(read)).astype(np.int32),
            "decoder_tokens": target,
            "labels": target + 1,
        }
        made.append(Example({**arrays, "weights": np.ones(written, np.float32)}, i))
    rows = tuple({"n": i} for i in range(len(made)))
    table = Table("t", ("n",), rows, tuple(range(1, len(rows) + 1)))
    return RowDataset(Examples(table, made, [None] * len(rows), {}), FIELDS)


def unpack(batch) -> dict[int, tuple[list[int], list[int], list[int]]]:
    """Example -> its tokens of either stream and its labels."""
    found = {}
    for row, slots in enumerate(batch[EXAMPLES]):
        for slot, example in enumerate(slots):
            if example >= 0:
                parts = [
                    batch[name][row][batch[f"{stream}segment_ids"][row] == slot + 1].tolist()
                    for name, stream in (("tokens", ""), ("decoder_tokens", "decoder_"), ("labels", "decoder_"))
                ]
                assert int(example) not in found
                found[int(example)] = tuple(parts)
    return found


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_every_example_comes_whole_and_once(kind, packing):
    data = dataset(kind)
    layout = BatchLayout(batch_size=16, max_length=64, packing=packing)
    expected = {
        i: (e.arrays["tokens"].tolist(), e.arrays["decoder_tokens"].tolist(), e.arrays["labels"].tolist())
        for i, e in enumerate(data.split.examples)
    }
    evaluated = {}
    for batch in data.batches(layout):
        evaluated |= unpack(batch)
        padding = batch["decoder_segment_ids"] == 0
        assert not batch["weights"][padding].any() and batch["weights"][~padding].all()
        assert batch["decoder_tokens"].shape[1] % 8 == 0
    assert evaluated == expected
    loader = data.loader(layout)
    trained = {}
    for _ in range(loader.steps_per_epoch):
        trained |= unpack(next(loader))
    loader.close()
    assert trained == expected
    assert 0 <= loader.padding_share < 1


def test_rows_of_like_lengths_are_nearly_full_and_other_targets_another_run():
    data = dataset("alike")
    layout = BatchLayout(batch_size=45, max_length=128)
    loader = data.loader(layout)
    loader.close()
    assert loader.padding_share < 0.2
    changed = list(data.split.examples)
    changed[0] = Example({**changed[0].arrays, "decoder_tokens": changed[0].arrays["decoder_tokens"] + 1}, 0)
    other = RowDataset(Examples(data.split.table, changed, data.split.labels, {}), FIELDS).loader(layout)
    other.close()
    assert other.fingerprint != loader.fingerprint


def test_one_stream_takes_up_its_tokens():
    examples = [Example({"tokens": np.zeros(n, np.int32)}, 0) for n in (3, 1, 7)]
    streams = streams_of(examples, 8)
    assert streams.columns.tolist() == [3, 1, 7] and streams.tokens == 11
    assert streams.row_lengths(16) == {"": 16} and streams.cells(16) == 16
