"""Mixout: pretrained weights mixed into trained kernels, by the formula, and by nothing but the step's key."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import tiny, weights

from jaxlm.config.model import ModelConfig
from jaxlm.models.base import flatten
from jaxlm.models.freezing import freeze
from jaxlm.models.mixout import PRETRAINED, MixoutSplit
from jaxlm.setup.few_parameters import make_split

RATE = 0.3


def test_the_mixture_is_the_pretrained_weight_or_the_trained_one_moved_away_from_it():
    model = tiny("bert")
    config = ModelConfig.model_validate({"init": "x", "mixout": RATE, "freeze": ["layers.0"]})
    split = make_split(config, model, None, None)
    assert isinstance(split, MixoutSplit) and split.layers == freeze(model, ["layers.0"]).layers
    before = jax.tree.map(jnp.asarray, weights(model))
    trained, frozen = split.split(before)
    pointers = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(trained)}
    assert not pointers & {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(frozen[PRETRAINED])}
    old, moved = flatten(before), jax.tree.map(lambda leaf: leaf + 1.0, trained)
    now = flatten(moved)
    assert flatten(split.merge(moved, frozen)).keys() == old.keys()
    np.testing.assert_array_equal(
        flatten(split.merge(moved, frozen))["trunk/stack/layers/q"], now["trunk/stack/layers/q"]
    )
    mixed = flatten(split.merge(moved, frozen, jax.random.key(1)))
    again, other = (flatten(split.merge(moved, frozen, jax.random.key(key))) for key in (1, 2))
    changed = {name for name in mixed if not np.array_equal(mixed[name], now[name])}
    assert changed == {name for name in old if name in model.kernels and name.startswith("trunk/")}
    assert "trunk/stack/layers/q" in changed and not any("scale" in name or "bias" in name for name in changed)
    shares = []
    for name in sorted(changed):
        value, kept = np.asarray(mixed[name]), np.isclose(mixed[name], old[name], atol=1e-6)
        away = (np.asarray(now[name]) - RATE * np.asarray(old[name])) / (1 - RATE)
        np.testing.assert_allclose(value[~kept], away[~kept], rtol=1e-5, atol=1e-6)
        shares.append(kept.mean())
        np.testing.assert_array_equal(value, again[name])
        assert not np.array_equal(value, other[name])
    assert abs(np.mean(shares) - RATE) < 0.02


def test_what_mixout_refuses():
    for section, problem in (
        ({"family": "bert", "mixout": 0.1}, "mixout: only for a pretrained model"),
        ({"init": "x", "mixout": 0.1, "bitfit": True}, "mixout: the kernels are not trained with lora"),
        ({"init": "x", "mixout": 1.0}, "less than 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            ModelConfig.model_validate(section)
