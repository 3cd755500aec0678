"""What ALBERT has of its own: groups of layers that share parameters, counted once, and what its config may say."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest
from helpers.tiny_models import apply, inputs, pack, tiny, weights
from helpers.tiny_models import examples as some_texts

from jaxlm.cost.flops import matmul_flops
from jaxlm.errors import UserError
from jaxlm.models import FAMILIES

FAMILY = FAMILIES["albert"]
TEXTS = pack([some_texts(2, seed=1)], length=20, slots=3)


@pytest.mark.parametrize(
    ("layers", "groups", "sizes"), [(3, 1, [3]), (3, 2, [2, 1]), (5, 3, [2, 2, 1]), (12, 4, [3] * 4), (4, 4, [1] * 4)]
)
def test_layers_are_dealt_to_groups_as_in_transformers(layers, groups, sizes):
    assert tiny("albert", num_layers=layers, num_groups=groups).config.group_sizes == sizes


def test_a_shared_layer_is_counted_once_as_parameters_and_each_time_as_work():
    one, three = (tiny("albert", num_layers=layers, num_groups=1) for layers in (1, 3))
    assert one.num_parameters == three.num_parameters
    layer = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(one.shapes["trunk"]["stack"]))
    assert tiny("albert", num_layers=3, num_groups=3).num_parameters == one.num_parameters + 2 * layer
    of_one, of_three = (matmul_flops(model.apply, model.shapes, inputs(TEXTS, model)) for model in (one, three))
    matrices = 4 * 16 * 16 + 2 * 16 * 32
    assert of_three - of_one == 2 * 20 * (2 * matrices + 4 * 20 * 16)  # two more layers of 20 columns


def test_a_group_of_its_own_for_each_layer_computes_what_shared_parameters_do():
    shared, own = tiny("albert", num_groups=1), tiny("albert", num_groups=3)
    params = weights(shared)
    stack = jax.tree.map(lambda leaf: np.repeat(leaf, 3, axis=0), params["trunk"]["stack"])
    copied = {**params, "trunk": {**params["trunk"], "stack": stack}}
    np.testing.assert_allclose(apply(own, copied, TEXTS), apply(shared, params, TEXTS), atol=1e-6, rtol=0)


def test_a_silent_config_is_what_transformers_takes_it_for():
    assert FAMILY.from_hf({}) == FAMILY.presets["xxlarge"]
    hub = {
        "embedding_size": 128, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072, "gap_size": 0,
        "inner_group_num": 1, "net_structure_type": 0, "num_memory_blocks": 0, "down_scale_factor": 1,
    }  # fmt: skip
    assert FAMILY.from_hf(json.loads(json.dumps(hub))) == FAMILY.presets["base"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inner_group_num": 2}, "inner_group_num=2 is not supported; expected 1"),
        ({"num_hidden_groups": 13}, "13 groups of layers .* expected at most one for each of 12 layers"),
        ({"num_hidden_groups": 0}, "num_hidden_groups=0: expected 1 to"),
        ({"embedding_size": "wide"}, "embedding_size: expected a whole number, found 'wide'"),
    ],
)
def test_variants_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FAMILY.from_hf(settings)
