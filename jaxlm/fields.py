"""What a batch holds: each array's name, dtype and what its values belong to.

Packing, sharding and placement read it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Batch = dict[str, np.ndarray]
"""Arrays by name; B rows of T tokens with S slots (layout: docs/design.md)."""
EXAMPLES = "examples"
"""int32 [B, S] in a batch: the index of the example in each slot, -1 for none. The host reads it, the device never."""
GROUPS = "groups"
"""int32 [B, S] in a batch of a task that compares examples: the group of each slot's example, -1 for none."""

MIX_PARTNER, MIX_SHARE = "mix_partner", "mix_share"
"""int32 and float32 [B, S], added to a batch in the step: with which example's state each one's is mixed before the
head, counted over all B * S slots, and its own share."""


@dataclass(frozen=True)
class Field:
    """One array that a task's examples carry, and what its values belong to.

    Attributes:
      name: its key in a batch.
      per: "token": one value for each token of the stream, [B, T] in a batch; "slot": one value for each example,
        [B, S, *shape]; "position": for each slot the column of one of its example's tokens, [B, S]. An example gives
        the column counted from its own first token; packing adds the column at which the example begins.
      dtype: of the array.
      shape: of one slot's value.
      fill: the value of padding and of empty slots.
      stream: prefix of the stream it belongs to: "" (the only one, or the encoder's) or "decoder_".
    """

    name: str
    per: Literal["token", "slot", "position"]
    dtype: Any = np.int32
    shape: tuple[int, ...] = ()
    fill: float = 0
    stream: str = ""


STREAM_ARRAYS = ("tokens", "segment_ids", "positions")
"""int32 [B, T] each: what every stream has, under its prefix."""


def token_arrays(fields: Iterable[Field]) -> frozenset[str]:
    """Names of the arrays [B, T]: those of the streams, and the fields with a value for each token."""
    streams = {f"{prefix}{name}" for prefix in ("", "decoder_") for name in STREAM_ARRAYS}
    return frozenset(streams | {field.name for field in fields if field.per == "token"})
