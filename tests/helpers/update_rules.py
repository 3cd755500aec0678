"""For tests: the update rules to choose from, and parameters of every form that they meet."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxlm.optim import make_optimizer
from jaxlm.optim.config import OptimizerConfig

SHAPES = {"q": (2, 8, 2, 6), "q_bias": (2, 2, 6), "o": (2, 2, 6, 8), "fused": (2, 8, 3, 2, 6), "tokens": (9, 8),
          "norm_scale": (8,), "dense": (8, 5)}  # fmt: skip
AXES = {"q": ("layers", "embed", "heads", "head_dim"), "q_bias": ("layers", "heads", "head_dim"),
        "o": ("layers", "heads", "head_dim", "embed"), "fused": ("layers", "embed", "qkv", "heads", "head_dim"),
        "tokens": ("vocab", "embed"), "norm_scale": ("norm",), "dense": ("embed", "embed_in")}  # fmt: skip
FACTORED_FROM = "jaxlm.optim.adafactor._FACTORED_FROM"
RATE, DECAY = 0.01, 0.1
CHOICES = {
    "adamw": {},
    "adamw-bfloat16": {"moment_dtype": "bfloat16"},
    "adafactor": {"name": "adafactor"},
    "muon": {"name": "muon"},
    "muon-bfloat16": {"name": "muon", "moment_dtype": "bfloat16"},
}
choices = pytest.mark.parametrize("choice", CHOICES)


def optimizer_of(axes: Any, steps: int = 10, **keys: Any) -> optax.GradientTransformation:
    keys = {"learning_rate": RATE, "weight_decay": DECAY, "schedule": "constant", "clip_norm": None} | keys
    return make_optimizer(OptimizerConfig(**keys), steps, axes)


def draw(shapes: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: rng.normal(0, 0.1, shape).astype(np.float32), shapes, is_leaf=is_shape)
