"""Pairs of texts and targets, packed by hand, and what Transformers computes for them (extra `parity`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Pair(NamedTuple):
    """A text and its target, the latter as a decoder reads it: behind the start token."""

    tokens: list[int]
    decoder_tokens: list[int]


def pairs(num: int, seed: int = 0, longest: int = 7, start: int = 0) -> list[Pair]:
    """Random texts and targets."""
    rng = np.random.default_rng(seed)
    draw = lambda: rng.integers(4, 64, int(rng.integers(2, longest + 1))).tolist()  # noqa: E731
    return [Pair(draw(), [start, *draw()]) for _ in range(num)]


def pack_pairs(rows: Sequence[Sequence[Pair]], length: int = 21, decoder_length: int = 24) -> dict[str, np.ndarray]:
    """Lays pairs out by hand: encoder and decoder each in rows of their own, a pair by the same segment number."""
    batch = {}
    for name, columns in (("", length), ("decoder_", decoder_length)):
        for part in ("tokens", "segment_ids", "positions"):
            batch[f"{name}{part}"] = np.zeros((len(rows), columns), np.int32)
        for r, row in enumerate(rows):
            start = 0
            for s, pair in enumerate(row):
                tokens = getattr(pair, f"{name}tokens")
                part = slice(start, start + len(tokens))
                assert part.stop <= columns
                batch[f"{name}tokens"][r, part] = tokens
                batch[f"{name}segment_ids"][r, part] = s + 1
                batch[f"{name}positions"][r, part] = np.arange(len(tokens))
                start = part.stop
    return batch


def torch_pair_logits(model, texts: Sequence[Pair]) -> list[np.ndarray]:
    """Transformers' logits of each target, [length, V], from a padded batch."""
    import torch

    def padded(rows):
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])

    with torch.no_grad():
        logits = model(
            input_ids=padded([text.tokens for text in texts]),
            attention_mask=padded([[1] * len(text.tokens) for text in texts]),
            decoder_input_ids=padded([text.decoder_tokens for text in texts]),
        ).logits.numpy()
    return [row[: len(text.decoder_tokens)] for row, text in zip(logits, texts, strict=True)]
