"""Batches of corpus rows: a row builder, and what stands in the batches of a loader."""

from __future__ import annotations

import itertools

import numpy as np

ROW_LENGTH = 16


ROWS = 4


def build(segments, rng):
    """Tokens plus one (0 is padding), the segment of each column, and something random."""
    tokens, segment_ids = np.zeros(ROW_LENGTH, np.int32), np.zeros(ROW_LENGTH, np.int32)
    column = 0
    for i, segment in enumerate(segments):
        inputs = segment.tokens[:-1]
        tokens[column : column + len(inputs)] = inputs + 1
        segment_ids[column : column + len(inputs)] = i + 1
        column += len(inputs)
    return {"tokens": tokens, "segment_ids": segment_ids, "masks": rng.random(ROW_LENGTH)}


def take(batches, count):
    return list(itertools.islice(batches, count))


def assert_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            assert a[key].dtype == b[key].dtype
            assert np.array_equal(a[key], b[key]), key


def rows_of(batches, key="tokens"):
    return [row for batch in batches for row in batch[key].tolist()]
