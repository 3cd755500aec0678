"""Where parameters stand in each kind of network, and what `model.freeze` names of them."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import apply, examples, pack, tiny, weights

from jaxlm.config.model import ModelConfig
from jaxlm.errors import UserError
from jaxlm.models import FAMILIES
from jaxlm.models.base import flatten
from jaxlm.models.freezing import TRAIN_ALL, freeze
from jaxlm.models.places import heights, places, stack_sizes, unflatten
from jaxlm.setup.few_parameters import make_split


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("bert", {"": 3}),
        ("modernbert", {"": 3}),
        ("gru", {"": 3}),
        ("t5", {"encoder": 3, "decoder": 3}),
        ("gru_seq2seq", {"encoder": 3, "decoder": 3}),
    ],
)
def test_layers_are_counted_from_the_embeddings(family, sizes):
    model = tiny(family)
    found = places(model)
    assert stack_sizes(found) == sizes
    height = heights(model, "key")
    assert height["trunk/tokens"] == 4
    assert all(height[name] == 0 for name in height if name.startswith("head/"))
    for name, place in found.items():
        if place.part == "layers":
            assert height[name] == tuple(3 - layer for layer in range(place.first, place.first + place.count))
    assert flatten(model.shapes).keys() == found.keys()


def test_a_layer_that_stands_apart_keeps_its_number():
    gru, modernbert, t5 = (places(tiny(family)) for family in ("gru", "modernbert", "t5"))
    assert gru["trunk/first/input"][2:] == (0, 1) and gru["trunk/layers/input"][2:] == (1, 2)
    assert modernbert["trunk/attention_norm_scale"][2:] == (1, 2) and modernbert["trunk/layers/o"][2:] == (0, 3)
    assert modernbert["trunk/final_norm_scale"].part == "output"
    assert t5["trunk/decoder/final_norm_scale"][:2] == ("output", "decoder")
    assert t5["trunk/encoder/relative_bias"][:2] == ("embeddings", "encoder")


EMBEDDINGS = {"trunk/tokens", "trunk/positions", "trunk/types", "trunk/embed_norm_scale", "trunk/embed_norm_bias"}


def test_what_patterns_name():
    model = tiny("bert")
    stacked = {name for name in flatten(model.shapes) if "/layers/" in name}
    split = freeze(model, ["embeddings", "layers.0-1"])
    assert split.whole == EMBEDDINGS and split.layers == dict.fromkeys(stacked, (False, False, True))
    assert freeze(model, ["layers.1"]).layers["trunk/stack/layers/q"] == (True, False, True)
    assert freeze(model, ["layers.0-1", "layers.2"]) == freeze(model, ["layers"])
    assert freeze(model, ["layers"]).whole == stacked and freeze(model, ["trunk"]).whole == stacked | EMBEDDINGS
    assert freeze(model, ["trunk/stack/layers/q*"]).whole == {"trunk/stack/layers/q", "trunk/stack/layers/q_bias"}
    assert freeze(model, []) is TRAIN_ALL


def test_patterns_of_stacks_of_their_own():
    model = tiny("t5")
    whole = freeze(model, ["encoder", "decoder.layers.0"])
    assert {name for name in flatten(model.shapes) if name.startswith("trunk/encoder/")} == whole.whole
    assert whole.layers["trunk/decoder/layers/q"] == (False, True, True)
    assert "trunk/encoder/layers/q" not in whole.layers and "trunk/tokens" not in whole.whole
    assert freeze(model, ["encoder.embeddings"]).whole == {"trunk/encoder/relative_bias"}
    recurrent = freeze(tiny("gru"), ["layers.0-1"])
    assert {name.split("/")[1] for name in recurrent.whole} == {"first"}
    assert recurrent.layers["trunk/layers/input"] == (False, True)


def test_split_and_merge_are_inverse_and_counted():
    for family, patterns in (("bert", ["embeddings", "layers.0"]), ("t5", ["encoder"]), ("bert", [])):
        model = tiny(family)
        split = freeze(model, patterns)
        params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), model.shapes)
        trained, frozen = split.split(params)
        assert jax.tree.structure(split.merge(trained, frozen)) == jax.tree.structure(params)
        assert flatten(frozen).keys() == split.whole and not flatten(trained).keys() & split.whole
        counts = split.count(model.shapes)
        held = sum(math.prod(flatten(model.shapes)[name].shape) for name in split.whole)
        held += sum(flatten(params)[name][~np.asarray(mask)].size for name, mask in split.layers.items())
        assert counts == (model.num_parameters - held, held)


@pytest.mark.parametrize(
    ("family", "pattern", "message"),
    [
        ("bert", "embedding", "found 'embedding'; did you mean 'embeddings'"),
        ("bert", "layers.0-3", r"layers\.0-3: expected layers of 0 to 2"),
        ("bert", "layers.2-1", "the lower first"),
        ("bert", "encoder", "expected embeddings, layers.FIRST-LAST, trunk or"),
        ("bert", "trunk/token", "no parameter is named 'trunk/token'; did you mean 'trunk/tokens'"),
        ("albert", "layers.0", "the 3 layers of albert share the parameters of 2"),
        ("bert", "*/*", "leave nothing of the model to train"),
    ],
)
def test_patterns_that_name_nothing_are_refused(family, pattern, message):
    with pytest.raises(UserError, match=r"model\.freeze: .*" + message):
        freeze(tiny(family), [pattern])


def test_shared_layers_have_no_heights():
    with pytest.raises(UserError, match=r"train\.unfreeze_every: the 3 layers of albert share"):
        heights(tiny("albert"), "train.unfreeze_every")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_embeddings_layers_and_a_way_back(family):
    model = tiny(family)
    found = places(model)
    assert found["trunk/tokens"].part == "embeddings"
    assert {place.part for place in found.values()} >= {"embeddings", "layers"}
    split = freeze(model, ["embeddings", "layers"])
    trained, frozen = split.split(model.shapes)
    assert jax.tree.structure(split.merge(trained, frozen)) == jax.tree.structure(model.shapes)


def test_what_is_frozen_may_be_held_in_half_precision():
    model = tiny("bert")
    params = jax.tree.map(jnp.asarray, weights(model))
    split = replace(freeze(model, ["embeddings", "layers.0-1"]), dtype=jnp.bfloat16)
    trained, frozen = split.split(params)
    assert {leaf.dtype for leaf in jax.tree.leaves(frozen)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(trained)} == {jnp.dtype(jnp.float32)}
    for tree, like in zip(split.split(model.shapes), (trained, frozen), strict=True):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), like
        )
    axes, whole = flatten(split.split(model.axes)[1]), flatten(model.axes)
    assert axes == {name: whole[name] for name in split.whole}
    rounded = {
        name: leaf.astype(jnp.bfloat16).astype(jnp.float32) if name in split.whole else leaf
        for name, leaf in flatten(params).items()
    }
    batch = pack([examples(4)[:2], examples(4)[2:]], 24, 3)
    found, expected = (apply(model, tree, batch) for tree in (split.merge(trained, frozen), unflatten(rounded)))
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, apply(model, params, batch))
    config = ModelConfig.model_validate({"family": "bert", "frozen_dtype": "bfloat16"})
    with pytest.raises(UserError, match=r"model\.frozen_dtype=bfloat16: no parameter is frozen whole"):
        make_split(config, model, None, None)
