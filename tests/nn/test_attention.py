"""The primitives under the decoders, against definitions written out: masks, attention, rotary positions, RMS norm."""

from __future__ import annotations

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import tiny

from jaxlm.errors import UserError
from jaxlm.models import llama
from jaxlm.nn.attention import Mask, attend, decoder_mask, empty_cache
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig, activation, take_columns
from jaxlm.nn.rotary import apply_rope
from jaxlm.nn.stacks import init_stack

SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 0, 0]], jnp.int32)


def may_read(query: int, key: int, window: int | None, prefix: list[int]) -> bool:
    """Of SEGMENTS, in words: the same example, and either in its prefix or neither ahead nor too far back."""
    same = [1, 1, 1, 2, 2, 2, 2, 0, 0][query] == [1, 1, 1, 2, 2, 2, 2, 0, 0][key]
    behind = key <= query and (window is None or query - key < window)
    return bool(same and (behind or prefix[key]))


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("prefix", [[0] * 9, [1, 0, 0, 1, 1, 0, 0, 0, 0]])
def test_causal_masks(window, prefix):
    expected = [[may_read(q, k, window, prefix) for k in range(9)] for q in range(9)]
    columns = jnp.asarray([prefix], jnp.int32)
    mask = decoder_mask(SEGMENTS, None, window=window, prefix_BT=columns if any(prefix) else None)
    assert mask.dense().shape == (1, 1, 9, 9)
    np.testing.assert_array_equal(mask.dense()[0, 0], expected)
    at = jnp.asarray([[6, 1, 1]], jnp.int32)
    np.testing.assert_array_equal(mask.at(at).dense()[0, 0], np.asarray(expected)[[6, 1, 1]])
    unbounded = [[may_read(q, k, None, prefix) for k in range(9)] for q in range(9)]
    for holds, wanted in ((True, expected), (False, unbounded)):
        np.testing.assert_array_equal(replace(mask, windowed=jnp.asarray(holds)).dense()[0, 0], wanted)

    cache = empty_cache(1, 1, 12, 1, 2, jnp.float32)
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        cache = cache.extend(SEGMENTS[:, start:stop])
        part = decoder_mask(SEGMENTS[:, start:stop], cache, window=window).dense()
        alone = [[may_read(q, k, window, [0] * 9) for k in range(9)] for q in range(start, stop)]
        np.testing.assert_array_equal(part[0, 0, :, :9], np.asarray(alone) & (np.arange(9) < stop)[None])
        assert not part[0, 0, :, 9:].any()  # what is not filled yet


def test_a_mask_of_both_directions():
    expected = np.asarray(SEGMENTS)[0, :, None] == np.asarray(SEGMENTS)[0, None]
    mask = Mask(SEGMENTS, SEGMENTS)
    np.testing.assert_array_equal(mask.dense()[0, 0], expected)
    np.testing.assert_array_equal(mask.at(jnp.asarray([[4, 0]], jnp.int32)).dense()[0, 0], expected[[4, 0]])
    np.testing.assert_array_equal(Mask(SEGMENTS[:, :4], SEGMENTS).dense()[0, 0], expected[:4])


def test_a_mask_passes_through_transformations():
    """As an argument of jit, vmap, scan and checkpoint; what is static stays so."""
    mask = replace(decoder_mask(SEGMENTS, None, window=2, prefix_BT=SEGMENTS), windowed=jnp.asarray(True))

    def dense(mask):
        assert mask.causal is True and mask.window == 2
        return mask.dense()

    expected = np.asarray(mask.dense())
    np.testing.assert_array_equal(jax.jit(jax.checkpoint(dense))(mask), expected)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x]), mask)
    np.testing.assert_array_equal(jax.vmap(dense)(stacked), np.stack([expected, expected]))
    _, scanned = jax.lax.scan(lambda mask, _: (mask, dense(mask)), mask, None, length=2)
    np.testing.assert_array_equal(scanned, np.stack([expected, expected]))


def test_a_cache_returns_each_layer_its_own_columns():
    rng = np.random.default_rng(0)
    cache = empty_cache(2, 3, 6, 2, 4, jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 2, 3, 5, 2, 4)), jnp.float32)  # of two layers
    for start, stop in ((0, 3), (3, 5)):
        cache = cache.extend(jnp.ones((3, stop - start), jnp.int32))
        for layer in (0, 1):
            cache, keys, values = cache.put(jnp.int32(layer), k[layer][:, start:stop], v[layer][:, start:stop])
            np.testing.assert_array_equal(keys[:, :stop], k[layer][:, :stop])
            np.testing.assert_array_equal(values[:, :stop], v[layer][:, :stop])
            assert not keys[:, stop:].any()
    assert cache.length == 5


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("open_path", [False, True])
def test_attention_is_its_formula(kv_heads, open_path):
    """Grouped heads, mask, bias and scale; by the fused kernel, and by the path that can drop probabilities out."""
    rng = np.random.default_rng(kv_heads)
    q = rng.normal(size=(2, 5, 6, 4)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, 7, kv_heads, 4)).astype(np.float32)
    bias = rng.normal(size=(1, 6, 5, 7)).astype(np.float32)
    query_ids, key_ids = rng.integers(1, 3, (2, 5)), np.tile([1, 2, 1, 1, 2, 2, 1], (2, 1))
    mask = query_ids[:, None, :, None] == key_ids[:, None, None]
    expected = np.zeros_like(q)
    for b, t, n in np.ndindex(2, 5, 6):
        of_group = n // (6 // kv_heads)
        logits = 0.7 * (k[b, :, of_group] @ q[b, t, n]) + bias[0, n, t]
        weights = np.exp(logits) * mask[b, 0, t]
        expected[b, t, n] = weights @ v[b, :, of_group] / weights.sum()
    # A rate too small for its 32 bits drops nothing.
    settings = {"dropout_rate": 1e-10, "key": jax.random.key(0)} if open_path else {}
    described = Mask(jnp.asarray(query_ids, jnp.int32), jnp.asarray(key_ids, jnp.int32))
    q, k, v, bias = map(jnp.asarray, (q, k, v, bias))
    actual = attend(q, k, v, described, ComputeConfig(), bias=bias, scale=0.7, **settings)
    np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("kv_heads", "dtype", "tolerance"), [(6, jnp.float32, 1e-5), (2, jnp.float32, 1e-5), (6, jnp.bfloat16, 0.02)]
)
def test_dropped_out_attention_and_its_gradients_are_their_formula(kv_heads, dtype, tolerance):
    """The probabilities, of which some are dropped and the others scaled, times the values; padding included."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, 9, 6, 4)), dtype)
    k, v = jnp.asarray(rng.normal(size=(2, 2, 9, kv_heads, 4)), dtype)
    bias = jnp.asarray(rng.normal(size=(1, 6, 9, 9)), jnp.float32)
    segments, key = jnp.tile(SEGMENTS, (2, 1)), jax.random.key(0)
    kept = dropout(jnp.ones((2, 6, 9, 9)), 0.4, key)
    cotangent = jnp.asarray(rng.normal(size=q.shape), jnp.float32)

    def actual(q, k, v, bias):
        mask = Mask(segments, segments)
        return attend(q, k, v, mask, ComputeConfig(), bias=bias, dropout_rate=0.4, key=key).astype(jnp.float32)

    def expected(q, k, v, bias):
        q, k, v = (jnp.repeat(x.astype(jnp.float32), 6 // x.shape[2], axis=2) for x in (q, k, v))
        logits = jnp.einsum("BTNH,BSNH->BNTS", q, k) / 2 + bias
        logits = jnp.where(segments[:, None, :, None] == segments[:, None, None], logits, -jnp.inf)
        return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(logits) * kept, v)

    results = []
    for function in (actual, expected):
        y, back = jax.vjp(function, q, k, v, bias)
        results.append([y, *back(cotangent)])
    for ours, theirs in zip(*results, strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_x_times_the_normal_cdf(dtype):
    """Value and derivative, forwards and backwards."""
    x = jnp.concatenate([jnp.linspace(-12, 12, 481), jnp.asarray([-100.0, 0.0, 100.0])]).astype(dtype)
    exact = np.asarray(x, np.float64)
    cdf = np.asarray([0.5 + 0.5 * math.erf(value / math.sqrt(2)) for value in exact])
    slope = cdf + exact * np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    gelu, ones = activation("gelu"), jnp.ones_like(x)
    y, forwards = jax.jvp(gelu, (x,), (ones,))
    backwards = jax.grad(lambda x: gelu(x).astype(jnp.float32).sum())(x)
    bound = 2e-6 if dtype == jnp.float32 else 2e-2
    for ours, theirs in ((y, exact * cdf), (forwards, slope), (backwards, slope)):
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, atol=bound, rtol=bound)


def test_cudnn_cannot_drop_probabilities_out():
    x = jnp.zeros((1, 9, 1, 8))
    with pytest.raises(UserError, match="model.attention=cudnn cannot drop out attention probabilities"):
        attend(
            x, x, x, Mask(SEGMENTS, SEGMENTS), ComputeConfig(attention="cudnn"), dropout_rate=0.1, key=jax.random.key(0)
        )


def test_rotary_positions_turn_pairs_as_complex_numbers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = jnp.asarray(rng.integers(0, 100, (2, 5)), jnp.int32)
    frequencies = np.asarray([1.0, 0.3, 0.05, 0.001], np.float32)
    turned = apply_rope(jnp.asarray(x), positions, frequencies)
    numbers = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * np.asarray(positions)[:, :, None, None] * frequencies)
    np.testing.assert_allclose(turned, np.concatenate([numbers.real, numbers.imag], -1), atol=1e-5, rtol=0)
    assert apply_rope(jnp.asarray(x, jnp.bfloat16), positions, frequencies).dtype == jnp.bfloat16


def test_pick_takes_each_rows_columns():
    x = np.arange(2 * 4 * 3).reshape(2, 4, 3)
    columns = jnp.asarray([[3, 0], [1, 1]], jnp.int32)
    np.testing.assert_array_equal(take_columns(jnp.asarray(x), columns), np.stack([x[0, [3, 0]], x[1, [1, 1]]]))
    wide = np.moveaxis(x, 1, 2)
    np.testing.assert_array_equal(
        take_columns(jnp.asarray(wide), columns, axis=2), np.stack([wide[0][:, [3, 0]], wide[1][:, [1, 1]]])
    )
    assert take_columns(jnp.asarray(x), None).shape == x.shape


def test_parameters_of_a_stack_are_made_without_the_kernel(monkeypatch):
    """cuDNN's attention cannot be mapped over layers, and Flax makes a stack's shapes anew in every call."""
    asked, attention = [], jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention",
        lambda *args, implementation, **keys: asked.append(implementation) or attention(*args, **keys),
    )  # fmt: skip
    model = tiny("llama", ComputeConfig(dtype=jnp.bfloat16, attention="cudnn"))
    ids = jnp.ones((2, 4), jnp.int32)
    x = jnp.ones((2, 4, model.config.embed_dim), jnp.bfloat16)
    init = init_stack(llama.Block(model.config, model.compute), 3, x, ids, decoder_mask(ids, None))
    shapes = jax.eval_shape(init, jax.random.key(0))
    assert asked == ["xla"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(shapes)} == {3}
    jax.eval_shape(
        lambda params: model.apply(params, {"tokens": ids, "segment_ids": ids, "positions": ids}), model.shapes
    )
    assert "cudnn" in asked
