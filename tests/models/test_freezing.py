"""Where parameters stand in each kind of network, and what `model.freeze` names of them."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import apply, assert_close, examples, pack, tiny, weights

from jaxlm.config.model import ModelConfig
from jaxlm.errors import UserError
from jaxlm.models import FAMILIES
from jaxlm.models.base import flatten
from jaxlm.models.freezing import TRAIN_ALL, freeze, kernel_dims
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


def every_input(model):
    """Two rows of twelve random tokens, one text each."""
    rng = np.random.default_rng(0)
    values = {
        "tokens": rng.integers(4, 64, (2, 12)),
        "segment_ids": np.ones((2, 12)),
        "positions": np.arange(24).reshape(2, 12) % 12,
        "slot_positions": np.zeros((2, 1)),
    }
    names = {name: name.removeprefix("decoder_") for name in model.family.inputs}
    return {name: np.asarray(values.get(plain, np.zeros((2, 12))), np.int32) for name, plain in names.items()}


@pytest.mark.parametrize(("family", "pattern"), [("bert", "trunk"), ("llama", "trunk"), ("t5", "encoder")])
def test_what_is_frozen_may_be_held_in_8_bits(family, pattern):
    model = tiny(family)
    params = jax.tree.map(jnp.asarray, weights(model))
    held = freeze(model, [pattern])
    split = replace(held, dtype=jnp.int8, int8_kernels=kernel_dims(model))
    trained, frozen = split.split(params)
    flat, before = flatten(frozen), flatten(params)
    kernels = [name for name in model.kernels if name in split.whole]
    assert kernels and {flat[name].dtype for name in kernels} == {jnp.dtype(jnp.int8)}
    assert {flat[f"{name}_int8_scale"].dtype for name in kernels} == {jnp.dtype(jnp.float32)}
    assert {flat[name].dtype for name in split.whole - set(kernels)} == {jnp.dtype(jnp.bfloat16)}
    # The closest multiple of the scale, by an independent formula, axis by axis.
    name = next(name for name in kernels if model.kernels[name] == 1 and flatten(model.axes)[name][0] == "layers")
    kernel = np.asarray(before[name])
    restored = np.asarray(flatten(split.restore(split.merge(trained, frozen)))[name])
    for layer, entries in enumerate(kernel):
        columns, found = entries.reshape(len(entries), -1), restored[layer].reshape(len(entries), -1)
        for column, column_found in zip(columns.T, found.T, strict=True):
            step = np.abs(column).max() / 127
            assert np.abs(column - column_found).max() <= step / 2 * 1.001
            np.testing.assert_allclose(column_found / step, np.round(column / step), atol=1e-3)
    for tree, like in zip(split.split(model.shapes), (trained, frozen), strict=True):
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), like
        )
    for name, axes in flatten(split.split(model.axes)[1]).items():
        assert len(axes) == flat[name].ndim
    # The model computes what one with the restored weights does, in value and gradient.
    restored = split.restore(split.merge(trained, frozen))
    assert jax.tree.structure(restored) == jax.tree.structure(params)
    batch = {name: jnp.asarray(value) for name, value in every_input(model).items()}

    def loss(trained, frozen):
        outputs = model.apply(split.merge(trained, frozen), batch)
        outputs = outputs.logits() if hasattr(outputs, "logits") else outputs
        return jnp.square(outputs).mean(), outputs

    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), held.split(restored)[1])
    whole = unflatten({**flatten(half), **{name: flatten(restored)[name] for name in kernels}})
    [(_, ours), of_ours], [(_, plain), of_plain] = (
        jax.value_and_grad(loss, has_aux=True)(trained, tree) for tree in (frozen, whole)
    )
    np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    assert_close(of_ours, of_plain, 1e-4)
    _, exact = loss(trained, held.split(params)[1])
    assert 0 < np.abs(ours - exact).max() < 0.2 * np.abs(exact).max()
