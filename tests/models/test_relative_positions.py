"""Encoders that add relative positions to their logits: the last layer at the slots, and gradients of every map."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import FAST, assert_close, examples, inputs, pack, tiny, weights

from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten, override


@pytest.mark.parametrize(
    ("family", "changes", "cancelled"),
    [
        # Of positions with maps of their own, all distances told apart.
        ("deberta-v2", {"own_position_maps": True, "num_buckets": None, "max_distance": 5}, "/position_k_bias"),
        ("mpnet", {}, "/k_bias"),
    ],
)
def test_slots_have_the_states_of_their_columns_and_gradients_reach_every_map(family, changes, cancelled):
    config = override(tiny(family).config, {"num_layers": 1, **changes})
    model = Model(FAMILIES[family], config, "token_classification", 3)
    batch = inputs(pack([examples(3, seed=4, longest=7)], length=21, slots=4), model)
    slots = batch["slot_positions"] = np.asarray([[3, 0, 12, 7]], np.int32)
    mix = np.random.default_rng(0).normal(size=(1, 4, 3)).astype(np.float32)

    def loss(params, batch):
        outputs = model.apply(params, batch)
        if "slot_positions" not in batch:
            outputs = jnp.take_along_axis(outputs, jnp.asarray(slots)[..., None], axis=1)
        return (jnp.sin(outputs) * mix).sum()

    gradients = jax.jit(jax.value_and_grad(loss), compiler_options=FAST)
    params, everywhere = weights(model), {name: x for name, x in batch.items() if name != "slot_positions"}
    at_slots, expected = (jax.device_get(gradients(params, arrays)) for arrays in (batch, everywhere))
    assert_close(at_slots, expected)
    for name, gradient in flatten(at_slots[1]).items():
        if not name.endswith(cancelled):  # adds the same to all logits of a query
            assert np.abs(gradient).max() > 1e-4, name
