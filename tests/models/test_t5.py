"""T5: packed encoder and decoder rows, relative positions, dropout, knobs and shards, of both versions."""

from __future__ import annotations

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.t5_models import model_of, of_segments, versions
from helpers.text_pairs import pack_pairs, pairs
from helpers.tiny_models import FAST, assert_close, column_gradients, token_logits, weights

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES, Model, t5
from jaxlm.models.base import flatten, override
from jaxlm.nn import attention
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig
from jaxlm.nn.relative_positions import relative_bias, relative_buckets
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings

KEYS = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]


# Eight rows everywhere, which a mesh divides: one program a model.


def eight_rows() -> dict[str, np.ndarray]:
    texts = pairs(10, seed=6)
    return pack_pairs([texts[:2], texts[2:4], *([text] for text in texts[4:])])


@versions
def test_packed_pairs_give_the_logits_they_give_alone(version):
    model = model_of(version)
    params = weights(model)
    texts = pairs(8, seed=2)
    batch = pack_pairs([texts[:2], texts[2:4], texts[4:6], texts[6:], [], [], [], []])
    packed = of_segments(token_logits(model, params, batch), batch)
    alone = pack_pairs([[text] for text in texts])
    for ours, single in zip(packed, of_segments(token_logits(model, params, alone), alone), strict=True):
        np.testing.assert_allclose(ours, single, atol=1e-5, rtol=0)
    assert np.ptp(np.concatenate(packed), axis=0).min() > 0.05


def reads(model: Model, params, batch) -> tuple[np.ndarray, np.ndarray]:
    """How much each decoder column's states change with each encoder and each decoder column's embedding."""

    def influence(params, batch):
        table = params["trunk"]["tokens"]
        T, U = (batch[name].shape[1] for name in ("tokens", "decoder_tokens"))
        config = override(model.config, {"vocab_size": 64 + T + U})
        trunk: Any = model.family.trunk(config, model.compute)

        def states(extra):  # a table row of its own for every column
            ids = jnp.concatenate([batch["tokens"][0], batch["decoder_tokens"][0]])
            own = {**params["trunk"], "tokens": jnp.concatenate([table, table[ids] + extra])}
            columns = jnp.arange(64, 64 + T + U, dtype=jnp.int32)[None]
            segments = (batch["segment_ids"][:1], batch["decoder_segment_ids"][:1])
            return trunk.apply({"params": own}, columns[:, :T], segments[0], columns[:, T:], segments[1])[0]

        size = column_gradients(states, jnp.zeros((T + U, table.shape[1])), U)
        return size[:, :T], size[:, T:]

    return jax.device_get(jax.jit(influence, compiler_options=FAST)(params, batch))


def test_a_target_reads_its_own_past_and_its_own_text_by_gradient():
    model, batch = model_of(), eight_rows()
    encoder, decoder = reads(model, weights(model), batch)
    texts, targets = batch["segment_ids"][0], batch["decoder_segment_ids"][0]
    real = targets > 0
    allowed = targets[:, None] == texts[None]
    assert encoder[real][allowed[real]].min() > 1e-6
    assert encoder[real][~allowed[real]].max() == 0
    allowed = (targets[:, None] == targets[None]) & np.tri(len(targets), dtype=bool)
    assert decoder[real][allowed[real]].min() > 1e-6
    assert decoder[real][~allowed[real]].max() == 0


@versions
def test_content_of_padding_never_changes_a_logit(version):
    model, batch = model_of(version), eight_rows()
    params = weights(model)
    clean = of_segments(token_logits(model, params, batch), batch)
    rng = np.random.default_rng(3)
    for name in ("", "decoder_"):
        empty = batch[f"{name}segment_ids"] == 0
        batch[f"{name}tokens"][empty] = rng.integers(0, 64, empty.sum())
    chex.assert_trees_all_equal(of_segments(token_logits(model, params, batch), batch), clean)


def test_a_full_encoder_row_leaves_the_decoders_padding_finite():
    """Padding of the decoder then has nothing to read."""
    model = model_of()
    text = pairs(1, seed=4)[0]._replace(tokens=list(range(4, 25)))
    batch = pack_pairs([[text]] * 8)
    assert batch["segment_ids"].min() == 1 and batch["decoder_segment_ids"].min() == 0
    params = weights(model)
    assert np.isfinite(token_logits(model, params, batch)).all()
    chex.assert_tree_all_finite(loss_and_gradients(model, params, batch))


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_bias_is_the_tables_row_of_each_distance(bidirectional):
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 3)).astype(np.float32)
    bias = relative_bias(jnp.asarray(table), 9, max_distance=7, bidirectional=bidirectional)
    chex.assert_shape(bias, (1, 3, 9, 9))
    for query, key in np.ndindex(9, 9):
        (bucket,) = relative_buckets(
            np.asarray([key - query]), num_buckets=8, max_distance=7, bidirectional=bidirectional
        )
        np.testing.assert_array_equal(bias[0, :, query, key], table[bucket])


def test_buckets_of_the_published_models():
    """32 buckets up to distance 128: near distances alone, far ones by the logarithm, the two directions apart."""
    of = functools.partial(relative_buckets, num_buckets=32, max_distance=128)
    decoder = of(-np.arange(0, 1000), bidirectional=False)
    assert decoder[:16].tolist() == list(range(16))
    assert (np.diff(decoder) >= 0).all() and decoder[113:].tolist() == [31] * 887
    edges = [int(np.argmax(decoder == b)) for b in range(16, 32)]
    expected = [math.ceil(16 * 8 ** (i / 16) - 1e-9) for i in range(16)]
    assert edges == expected
    assert of(np.arange(1, 9), bidirectional=False).tolist() == [0] * 8  # behind the query: hidden anyway
    encoder = of(np.asarray([-200, -8, -1, 0, 1, 8, 200]), bidirectional=True)
    assert encoder.tolist() == [15, 8, 1, 0, 17, 24, 31]


_gradients: dict[int, Any] = {}


def loss_and_gradients(model: Model, params, batch, key=KEYS[0]):
    """Of a loss that weighs every logit of every real token differently."""

    def loss(params, batch, key):
        logits = model.apply(params, batch, key).logits()
        mix = np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)
        return (jnp.sin(logits) * mix * (batch["decoder_segment_ids"] > 0)[..., None].astype(jnp.float32)).mean()

    arrays = {name: batch[name] for name in model.family.inputs}
    compiled = _gradients.setdefault(id(model), jax.jit(jax.value_and_grad(loss), compiler_options=FAST))
    return jax.device_get(compiled(params, arrays, key))


@versions
def test_gradients_reach_every_parameter_of_every_layer(version):
    model = model_of(version)
    for name, gradient in flatten(loss_and_gradients(model, weights(model), eight_rows())[1]).items():
        rows = {"encoder": 3, "decoder": 2}[name.split("/")[1]] if "/layers/" in name else 1
        assert np.abs(np.asarray(gradient)).reshape(rows, -1).max(-1).min() > 1e-5, name


@pytest.mark.slow
def test_execution_knobs_and_shards_change_neither_loss_nor_gradients_nor_dropout():
    """Of version 1.1; `parallel/test_mesh_equality.py` has version 1.0 on every mesh."""
    batch, params = eight_rows(), weights(model_of("v1_1"))
    expected = loss_and_gradients(model_of("v1_1"), params, batch)
    assert_close(
        loss_and_gradients(model_of("v1_1", ComputeConfig(unroll=3, remat="full")), params, batch), expected, 1e-4
    )
    rules = Rules(make_mesh("fsdp_tp", data=2, fsdp=2, tensor=2))
    model = model_of("v1_1", ComputeConfig(rules=rules))
    placed = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
    arrays = jax.device_put(batch, batch_shardings(batch, rules))
    assert_close(loss_and_gradients(model, placed, arrays), expected, 1e-4)


def test_dropout_follows_the_key():
    model, batch = model_of("v1_1"), eight_rows()
    first, again, other = (loss_and_gradients(model, weights(model), batch, key) for key in (KEYS[0], *KEYS))
    chex.assert_trees_all_equal(first, again)
    assert first[0] != other[0]


@pytest.mark.parametrize(("own", "hidden", "probs"), [(0.25, 0, 7), (None, 7, 0)])
def test_dropout_acts_at_the_places_of_the_published_model(own, hidden, probs, monkeypatch):
    """Embeddings and last states of both stacks, what each sub-layer adds, inside MLPs; attention's as the rest."""
    model = model_of(compute=ComputeConfig(unroll=3), dropout=0.125, attention_dropout=own)
    shapes, drawn = model.shapes, []

    def counted(x, rate, key):
        if key is not None:
            drawn.append(rate)
        return dropout(x, rate, key)

    for module in (attention, t5):
        monkeypatch.setattr(module, "dropout", counted)
    batch = {name: eight_rows()[name] for name in model.family.inputs}
    jax.eval_shape(model.apply, shapes, batch, None)
    assert not drawn  # without a key, nothing is dropped
    jax.eval_shape(model.apply, shapes, batch, KEYS[0])
    # Encoder: 3 layers of attention (output) and MLP (2); decoder: 2 layers with another attention.
    assert drawn.count(0.125) == 2 * 2 + 3 * 3 + 2 * 4 + hidden and drawn.count(0.25) == probs


def test_bfloat16_is_finite_and_close():
    batch, params = eight_rows(), weights(model_of())
    real = batch["decoder_segment_ids"] > 0
    exact, half = (
        token_logits(model_of(compute=ComputeConfig(dtype=d)), params, batch)[real] for d in (jnp.float32, jnp.bfloat16)
    )
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


def test_large_states_lose_nothing_in_half_precision():
    """Channel 0 is 4096 for every token until the last MLP takes it away: what the layers had added to it is left,
    which a residual in half precision would have rounded away, and 16 times as large would have overflowed float16."""
    batch, params = eight_rows(), jax.tree.map(np.array, weights(model_of()))
    trunk = params["trunk"]
    trunk["tokens"][:, 0] = 4096
    trunk["encoder"]["layers"] = jax.tree.map(lambda x: 0.05 * x, trunk["encoder"]["layers"])
    layers = trunk["decoder"]["layers"]
    for name in ("norm", "cross_norm", "mlp_norm"):
        layers[f"{name}_scale"][:] = 1
    layers["up"][1], layers["down"][1] = 0, 0
    layers["up"][1, 0, 0] = 1  # relu of the normalized channel, sqrt(16)
    layers["down"][1, 0, 0] = -4096 / 4
    trunk["decoder"]["final_norm_scale"][:] = 1
    states = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        compute = ComputeConfig(dtype=dtype)
        module: Any = FAMILIES["t5"].trunk(model_of().config, compute)
        arrays = {name: batch[name] for name in model_of().family.inputs}
        states[dtype] = np.asarray(jax.jit(module.apply)({"params": trunk}, **arrays), np.float32)
    real = batch["decoder_segment_ids"] > 0
    exact, half = (states[dtype][real] for dtype in (jnp.float32, jnp.bfloat16))
    assert np.abs(exact[:, 0]).min() > 0.5
    np.testing.assert_allclose(half[:, 0], exact[:, 0], atol=0.1, rtol=0)


@versions
def test_an_untrained_models_logits_are_of_unit_size(version):
    """The point of the scale of version 1.0 and of what each map is drawn from."""
    model = model_of(version)
    params = jax.jit(model.init, compiler_options=FAST)(KEYS[0])
    logits = of_segments(token_logits(model, params, eight_rows()), eight_rows())
    assert 0.5 < np.concatenate(logits).std() < 2.0
    assert abs(np.asarray(params["trunk"]["tokens"]).std() - 1) < 0.05
    layers = params["trunk"]["decoder"]["layers"]
    stds = {"q": (16 * 6) ** -0.5, "k": 16**-0.5, "cross_v": 16**-0.5, "o": 24**-0.5, "down": 32**-0.5}
    for name, std in stds.items():
        assert abs(np.asarray(layers[name]).std() / std - 1) < 0.1, name


def test_mistakes_are_named():
    with pytest.raises(UserError, match="at least 4 buckets of relative positions and a max_distance above half"):
        model_of(num_buckets=2)
    with pytest.raises(UserError, match="gated-gelu means the activation 'gelu_new'"):
        model_of("v1_1", activation="gelu")
    for kind in ("gated-mish", "bilinear-relu", "relu-gated-x"):
        with pytest.raises(UserError, match=f"feed_forward_proj='{kind}' is not supported; expected one of gelu, "):
            FAMILIES["t5"].from_hf({"feed_forward_proj": kind})
