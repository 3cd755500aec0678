"""Rotary positions by the TPU's kernel, interpreted, against the formula: values and gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.rotary import apply_rope, plain_rope_frequencies, turn_on_each_device
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules


@pytest.mark.parametrize(
    ("heads", "head_dim", "mesh"),
    [(4, 64, None), (4, 32, None), (1, 128, None), (8, 64, {"fsdp": 2, "tensor": 2, "context": 2, "data": 1})],
)
def test_the_kernel_equals_the_formula(heads, head_dim, mesh):
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.normal(size=(2, 256, heads, head_dim)), jnp.float32) for _ in range(2))
    positions = jnp.asarray(rng.integers(0, 5000, (2, 256)), jnp.int32)
    frequencies = plain_rope_frequencies(10_000, head_dim)
    rules = Rules() if mesh is None else Rules(make_mesh(**mesh))

    def by_kernel(x):
        angles = positions.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies)[None, None]
        return turn_on_each_device(x, jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1), rules)

    def by_formula(x):
        return apply_rope(x, positions, frequencies)

    def both(turn):
        return jax.jit(lambda x: (turn(x), jax.grad(lambda x: (turn(x) * weights).sum())(x)))(x)

    for ours, theirs in zip(both(by_kernel), both(by_formula), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert both(by_kernel)[0].dtype == x.dtype
    half = by_kernel(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(half, np.float32), by_formula(x), atol=0.05, rtol=0)


def test_on_a_tpu_it_is_the_kernel_where_blocks_are_whole(monkeypatch):
    monkeypatch.setattr(Rules, "platform", "tpu")
    rules = Rules(make_mesh("ddp"))

    def calls(rows, length, heads, head_dim, **settings):
        x, positions = jnp.zeros((rows, length, heads, head_dim)), jnp.zeros((rows, length), jnp.int32)
        frequencies = plain_rope_frequencies(10_000, head_dim)
        return "pallas_call" in str(jax.make_jaxpr(lambda x: apply_rope(x, positions, frequencies, **settings))(x))

    assert calls(8, 128, 2, 64, rules=rules)
    assert not calls(8, 128, 2, 64)
    assert not calls(8, 1, 2, 64, rules=rules)  # a token that is written
    assert not calls(8, 128, 1, 64, rules=rules) and not calls(8, 128, 4, 80, rules=rules)
    assert not calls(4, 128, 2, 64, rules=rules)  # rows that eight devices do not divide
