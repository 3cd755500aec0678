"""How many columns of a row an example takes up, where a row may have two streams: an encoder's and a decoder's.

Rows are packed by one number of columns an example. Of two streams the decoder's rows are `ratio` times as long as the
encoder's, and an example takes up as many encoder columns as it has tokens, or more where its target has a larger
share of the decoder's row. So whatever fits a row by that number fits both streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxlm.data.examples.example import Example
from jaxlm.data.examples.shapes import round_up

DECODER = "decoder_"
"""Prefix of the second stream."""
_PARTS = 64
"""The ratio is a multiple of one by this, so that columns are counted in integers."""


@dataclass(frozen=True)
class Streams:
    """What a split's examples take up of a row.

    Attributes:
      columns: int64 [examples], of the first stream.
      tokens: of all streams of all examples.
      ratio: 64ths of a decoder column to a column of the first stream; 0: there is one stream.
    """

    columns: np.ndarray
    tokens: int
    ratio: int = 0

    def row_lengths(self, row_length: int) -> dict[str, int]:
        """Returns the columns of each stream's rows, by its prefix."""
        if not self.ratio:
            return {"": row_length}
        return {"": row_length, DECODER: round_up(-(-row_length * self.ratio // _PARTS), 8)}

    def cells(self, row_length: int) -> int:
        """Returns the columns of all streams of a row."""
        return sum(self.row_lengths(row_length).values())


def example_lengths(examples: Sequence[Example], stream: str = "") -> np.ndarray:
    """int64 [len(examples)]: tokens of each."""
    name = f"{stream}tokens"
    return np.fromiter((len(example.arrays[name]) for example in examples), np.int64, len(examples))


def streams_of(examples: Sequence[Example], max_length: int) -> Streams:
    """Returns what examples take up; the ratio of two streams is the one that leaves the fewest columns empty.

    Args:
      max_length: columns that no example should exceed because of its target alone.
    """
    lengths = example_lengths(examples)
    if not examples or f"{DECODER}tokens" not in examples[0].arrays:
        return Streams(lengths, int(lengths.sum()))
    targets = example_lengths(examples, DECODER)
    most = max(max_length, int(lengths.max()))
    least = max(1, -(-int(targets.max()) * _PARTS // most))
    mean = max(1, round(_PARTS * float(targets.sum()) / float(lengths.sum())))
    candidates = sorted({max(least, mean * step // 16) for step in range(8, 65)})

    def cells(ratio: int) -> int:
        return int(_columns(lengths, targets, ratio).sum()) * (_PARTS + ratio)

    ratio = min(candidates, key=cells)
    return Streams(_columns(lengths, targets, ratio), int(lengths.sum() + targets.sum()), ratio)


def _columns(lengths: np.ndarray, targets: np.ndarray, ratio: int) -> np.ndarray:
    return np.maximum(lengths, -(-targets * _PARTS // ratio))
