"""For tests: a small T5 of either version."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from helpers.tiny_models import tiny

from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import override
from jaxlm.nn.layers import ComputeConfig

NEW = {"activation": "gelu_new", "gated": True, "tied": False}
VERSIONS = {"v1_0": {}, "v1_1": NEW}
versions = pytest.mark.parametrize("version", VERSIONS)


@functools.cache
def model_of(version: str = "v1_0", compute: ComputeConfig | None = None, **changes) -> Model:
    # Near distances, far ones and those beyond the last bucket all occur in rows of 21 and 24 columns.
    sizes = {"num_decoder_layers": 2, "num_buckets": 8, "max_distance": 6, **VERSIONS[version], **changes}
    return Model(FAMILIES["t5"], override(tiny("t5").config, sizes), "seq2seq_lm", 0, compute or ComputeConfig())


def of_segments(logits: np.ndarray, batch) -> list[np.ndarray]:
    """The logits of each target, row by row."""
    ids = batch["decoder_segment_ids"]
    return [logits[r][ids[r] == s + 1] for r in range(len(ids)) for s in range(ids[r].max())]
