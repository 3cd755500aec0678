"""For tests: a small recurrent language model, and rows for it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from helpers.tiny_models import Example, pack, tiny

from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import override
from jaxlm.nn.layers import ComputeConfig

families = pytest.mark.parametrize("family", ["lstm", "gru"])


@functools.cache
def lm(family: str, compute: ComputeConfig | None = None, **changes) -> Model:
    config = override(tiny(family).config, {"embed_dim": 24, **changes})  # wider than the layers: projected back
    return Model(FAMILIES[family], config, "causal_lm", 0, compute or ComputeConfig())


def rows(texts: list[list[Example]], length: int = 21) -> dict[str, np.ndarray]:
    """Packed rows without slots: a head then answers at every position."""
    batch = pack(texts, length, 3)
    return {name: batch[name] for name in ("tokens", "segment_ids", "positions")}
