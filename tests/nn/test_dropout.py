"""Dropout: rates, scales, independence of the draws, and the same draws however an array is laid out."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.dropout import draws, dropout
from jaxlm.parallel.mesh import make_mesh

SHAPES = [(8, 12, 96, 96), (1000, 770), (2**18,), (3, 5, 7, 11, 13)]


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_keeps_the_mean_and_scales_what_it_keeps(rate, dtype):
    x = jnp.full((400, 500), 3.0, dtype)
    y = np.asarray(dropout(x, rate, jax.random.key(0)), np.float32)
    kept = float(np.asarray(np.float32(3) * np.float32(1 / (1 - rate)), dtype))
    assert set(np.unique(y)) == {0.0, kept}
    assert abs((y == 0).mean() - rate) < 5 * math.sqrt(rate * (1 - rate) / y.size)


def test_the_scale_is_exact_in_half_precision():
    """The mean over values of any mantissa stays: a scale rounded to bfloat16 would move it by up to 0.4 %."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, 2**18), jnp.bfloat16)
    for rate in (0.1, 0.3):
        y = np.asarray(dropout(x, rate, jax.random.key(0)), np.float64)
        kept = y != 0
        ratio = y[kept].sum() / np.asarray(x, np.float64)[kept].sum()
        assert ratio == pytest.approx(1 / (1 - rate), rel=1e-4)


@pytest.mark.parametrize("rate", [1 - 1e-4, 1 - 1e-5, 1 - 1e-10, 1 - 1e-12])
def test_a_rate_next_to_one_keeps_its_share(rate):
    y = np.asarray(dropout(jnp.ones((2000, 1000)), rate, jax.random.key(0)))
    expected = y.size * (1 - rate)
    assert np.isfinite(y).all() and abs((y != 0).sum() - expected) < 5 * math.sqrt(expected) + 1
    assert set(np.unique(y)) <= {0.0, np.float32(y.max())}
    assert y.max() in (0.0, pytest.approx(1 / (1 - rate), rel=1e-3))


def test_without_a_key_or_a_rate_it_is_not_there():
    x = jnp.ones((3, 5))
    assert dropout(x, 0.25, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


@pytest.mark.parametrize("shape", SHAPES)
def test_every_bit_is_fair_and_independent_of_the_others(shape):
    words = np.asarray(draws(jax.random.key(1), shape)).reshape(-1)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    bound = 5 / math.sqrt(words.size)
    signs = bits.astype(np.float32) * 2 - 1
    assert np.abs(signs.mean(0)).max() < bound
    together = signs.T @ signs / words.size
    assert np.abs(together - np.eye(32)).max() < bound


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_neighbours_in_every_direction_are_independent(shape):
    """Of each element and those up to 64 places off along each axis; rows and columns as a whole lose their share."""
    zeroed = np.asarray(draws(jax.random.key(2), shape)) < 2**32 * 0.1
    sign = (zeroed - 0.1) / math.sqrt(0.09)
    for axis, lag in itertools.product(range(len(shape)), (1, 2, 3, 4, 8, 16, 32, 64)):
        if lag < shape[axis]:
            ahead = np.take(sign, range(lag, shape[axis]), axis)
            behind = np.take(sign, range(shape[axis] - lag), axis)
            assert abs((ahead * behind).mean()) < 5 / math.sqrt(ahead.size), (axis, lag)
    for axis in range(len(shape)):
        share = zeroed.mean(axis)
        deviation = (share - 0.1) / math.sqrt(0.09 / shape[axis])
        assert 0.9 < deviation.std() < 1.1 and np.abs(deviation).max() < 8


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_elements_far_apart_are_independent(rate):
    """At strides of few bits, up to those of rows and batches; the first hash had -0.05 at 12,288."""
    strides = [3**i * 2**k for i in (0, 1, 2) for k in range(8, 19)] + [2**k - 1 for k in range(8, 19)]
    for seed in range(3):
        zeroed = np.asarray(draws(jax.random.key(seed), (2**20,))) < 2**32 * rate
        sign = ((zeroed - rate) / math.sqrt(rate * (1 - rate))).astype(np.float32)
        for stride in (stride for stride in strides if stride < 2**19):
            pairs = sign.size - stride
            assert abs(float(np.dot(sign[stride:], sign[:-stride]))) < 5 * math.sqrt(pairs), stride


def test_keys_and_layers_draw_independently():
    """Also of keys that come from one another, as layers and steps split theirs."""
    keys = [jax.random.key(0), jax.random.key(1), *jax.random.split(jax.random.key(0), 4)]
    keys += [jax.random.fold_in(jax.random.key(5), step) for step in range(4)]
    zeroed = np.stack([np.asarray(draws(key, (500, 400))).reshape(-1) < 2**32 * 0.1 for key in keys])
    assert np.abs(np.corrcoef(zeroed) - np.eye(len(keys))).max() < 5.5 / math.sqrt(zeroed.shape[1])


def test_draws_do_not_depend_on_the_layout_or_on_jit():
    mesh = make_mesh("ddp", tensor=2, devices=jax.devices()[:8])
    x, key = jnp.ones((8, 4, 16)), jax.random.key(3)
    expected = dropout(x, 0.3, key)
    np.testing.assert_array_equal(jax.jit(dropout, static_argnums=1)(x, 0.3, key), expected)
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data", "tensor"))
    placed = jax.device_put(x, split)
    text = jax.jit(dropout, static_argnums=1).lower(placed, 0.3, key).compile().as_text()
    np.testing.assert_array_equal(jax.jit(dropout, static_argnums=1)(placed, 0.3, key), expected)
    assert not any(name in text for name in ("all-gather", "all-reduce", "collective-permute", "all-to-all"))


def test_gradients_pass_what_was_kept():
    x, key = jnp.arange(1.0, 1001.0).reshape(10, 100), jax.random.key(4)
    y, back = jax.vjp(lambda x: dropout(x, 0.2, key), x)
    np.testing.assert_allclose(back(jnp.ones_like(x))[0], y / x, rtol=1e-6)
