"""Where special tokens and texts stand in a model input, and how texts are cut to fit it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers
from tokenizers import models

from jaxlm.errors import UserError


@dataclass(frozen=True)
class TokenLayout:
    """The order of special tokens and texts in a model input.

    Attributes:
      parts: the number of a text (0, 1), or int32 [1], the id of a special token.
      kinds: int32 [parts], the token type of each part.
    """

    parts: tuple[int | np.ndarray, ...]
    kinds: np.ndarray

    @classmethod
    def from_backend(cls, backend: tokenizers.Tokenizer, num_texts: int, special_tokens: bool) -> TokenLayout:
        """Returns what the backend's post-processor does, seen on texts of one token each."""
        probe = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        if backend.post_processor is not None:
            probe.post_processor = backend.post_processor
        encoding = probe.encode("a", "a" if num_texts == 2 else None, add_special_tokens=special_tokens)
        parts = zip(encoding.sequence_ids, encoding.ids, strict=True)
        return cls(
            tuple(np.asarray([i], np.int32) if text is None else text for text, i in parts),
            np.asarray(encoding.type_ids, np.int32),
        )

    @property
    def num_special_tokens(self) -> int:
        return sum(isinstance(part, np.ndarray) for part in self.parts)

    @property
    def num_texts(self) -> int:
        return len(self.parts) - self.num_special_tokens

    def fill(self, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Returns ids and token types, each int32 [T]."""
        pieces = [part if isinstance(part, np.ndarray) else sequences[part] for part in self.parts]
        return np.concatenate(pieces), np.repeat(self.kinds, [len(piece) for piece in pieces])

    def text_length(self, max_length: int, stride: int | None = None) -> int:
        """Returns the number of tokens that `max_length` leaves for the texts.

        Raises:
          UserError: none for one of the texts, or `stride` as many as a window has.
        """
        length = max_length - self.num_special_tokens
        if length < self.num_texts:
            raise UserError(
                f"max_length: {max_length} leaves no room for text beside {self.num_special_tokens} special tokens; "
                f"expected at least {self.num_special_tokens + self.num_texts}"
            )
        if stride is not None and not 0 <= stride < length:
            raise UserError(
                f"stride: {stride} does not let a window of max_length {max_length} move on; expected 0 to {length - 1}"
            )
        return length


def truncate(sequences: Sequence[np.ndarray], length: int, left: bool) -> tuple[np.ndarray, ...]:
    """Cuts one or two texts to `length` tokens in all, the longest first; `left`: at the beginning.

    Of two texts that are both too long the longer, or else the second, keeps the odd token.
    """
    lengths = [length]
    if len(sequences) == 2:
        first, second = map(len, sequences)
        half = length // 2
        if min(first, second) <= half:
            lengths = [min(first, length - min(second, half)), min(second, length - min(first, half))]
        else:
            lengths = [length - half, half] if first > second else [half, length - half]
    return tuple(s[max(0, len(s) - n) :] if left else s[:n] for s, n in zip(sequences, lengths, strict=True))


def windows(sequences: Sequence[np.ndarray], length: int, stride: int) -> list[tuple[np.ndarray, ...]]:
    """Returns windows of `length` tokens over the last text, each behind the whole of the first.

    Neighboring windows share `stride` tokens.
    """
    *first, last = sequences
    if first and len(first[0]) + stride >= length:
        first = [first[0][: max(length - len(last), min(length // 2, length - stride - 1))]]
    size = length - sum(map(len, first))
    starts = range(0, max(1, len(last) - stride), max(1, size - stride))
    return [(*first, last[start : start + size]) for start in starts]
