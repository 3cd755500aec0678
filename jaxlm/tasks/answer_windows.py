"""Windows over a context behind its question, and the spans of characters that a model's outputs point to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxlm.data.examples.token_store import Pieces
from jaxlm.errors import UserError
from jaxlm.tokenizer.layout import TokenLayout

_LEAST_CONTEXT = 16
"""Tokens of a context, or all of them, that a window must have room for."""


class Span(NamedTuple):
    """A part of a context, by its characters, and the sum of its two logits."""

    score: float
    start: int
    end: int


class WindowTokens(NamedTuple):
    """What is known of a window's tokens on the host: the column of its first context token, and the characters of each
    context token, int64 [N, 2]."""

    first: int
    offsets: np.ndarray


class Window(NamedTuple):
    """The whole question and a part of the context, with special tokens around them."""

    ids: np.ndarray
    """int32 [T]."""
    type_ids: np.ndarray
    """int32 [T]."""
    begin: int
    """The first token's number in the context."""
    tokens: WindowTokens


def make_windows(
    layout: TokenLayout,
    question: np.ndarray,
    context: Pieces,
    max_length: int,
    stride: int,
) -> list[Window]:
    """Returns windows over the context, which share `stride` tokens, or as many as leave them room to move on.

    Args:
      layout: of two texts.
      question: int32 [Q].
      context: ids int32 [N], and characters int64 [N, 2].
      max_length: most tokens of a window.
    Raises:
      UserError: the question leaves too little room for the context.
    """
    ids, offsets = context
    size = max_length - layout.num_special_tokens - len(question)
    if size < min(max(1, len(ids)), _LEAST_CONTEXT):
        raise UserError(
            f"the question has {len(question)} tokens and leaves {max(0, size)} of data.max_length={max_length} for "
            f"the context; expected room for at least {_LEAST_CONTEXT}"
        )
    stride = min(stride, size // 2)
    place = next(i for i, part in enumerate(layout.parts) if not isinstance(part, np.ndarray) and part == 1)
    first = sum(1 if isinstance(part, np.ndarray) else len(question) for part in layout.parts[:place])
    made = []
    for begin in range(0, max(1, len(ids) - stride) if len(ids) > size else 1, size - stride):
        part = slice(begin, begin + size)
        filled = layout.fill((question, ids[part]))
        made.append(Window(*filled, begin, WindowTokens(first, offsets[part])))
    return made


def answer_tokens(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """Returns the first and the last token that have a character of [start, end); None: no token has."""
    inside = np.flatnonzero((offsets[:, 1] > offsets[:, 0]) & (offsets[:, 1] > start) & (offsets[:, 0] < end))
    return (int(inside[0]), int(inside[-1])) if len(inside) else None


def best_spans(logits: np.ndarray, tokens: WindowTokens, count: int, max_tokens: int) -> list[Span]:
    """Returns the spans of a window that score highest, the best first, each range of characters once.

    Args:
      logits: float [T, 2], of the first and the last token of a span.
      count: most spans.
      max_tokens: most tokens of a span.
    """
    number = len(tokens.offsets)
    width = min(max_tokens, number)
    if not width:
        return []
    starts, ends = logits[tokens.first : tokens.first + number].astype(np.float64).T
    solid = tokens.offsets[:, 1] > tokens.offsets[:, 0]  # neither white space nor a bare space mark
    starts, ends = np.where(solid, starts, -np.inf), np.where(solid, ends, -np.inf)
    behind = np.concatenate([ends, np.full(width - 1, -np.inf)])
    scores = (starts[:, None] + np.lib.stride_tricks.sliding_window_view(behind, width)).ravel()
    likely = np.arange(len(scores))
    if len(scores) > 4 * count:  # pieces of one character give the same range again
        likely = np.sort(np.argpartition(-scores, 4 * count)[: 4 * count])
    found: dict[tuple[int, int], Span] = {}
    for i in likely[np.argsort(-scores[likely], kind="stable")].tolist():
        begin, distance = divmod(i, width)
        if len(found) == count or scores[i] == -np.inf:
            break
        start, end = int(tokens.offsets[begin, 0]), int(tokens.offsets[begin + distance, 1])
        found.setdefault((start, end), Span(float(scores[i]), start, end))
    return list(found.values())


def merge_spans(windows: Sequence[Sequence[Span]], count: int) -> list[Span]:
    """Returns the best spans of all windows of a context; of one that several windows have, the highest score."""
    best: dict[tuple[int, int], Span] = {}
    for span in sorted((span for spans in windows for span in spans), key=lambda span: (-span.score, *span[1:])):
        best.setdefault(span[1:], span)
    return list(best.values())[:count]
