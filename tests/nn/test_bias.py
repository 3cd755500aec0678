"""The bias of a dense map, and its gradient by a TPU's matrix units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.nn.bias import add_bias
from jaxlm.nn.layers import add_leading_axes
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules

SHAPES = {("act_embed",): (8,), ("heads", "head_dim"): (2, 4)}


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("meshed", [False, True])
def test_the_gradient_by_a_product_is_the_sum(monkeypatch, axes, meshed):
    monkeypatch.setattr(Rules, "platform", "tpu")
    rules = Rules(make_mesh(data=2, fsdp=2, tensor=2)) if meshed else Rules()
    rng = np.random.default_rng(0)
    y, mix = (jnp.asarray(rng.normal(size=(4, 300, *SHAPES[axes])), jnp.bfloat16) for _ in range(2))
    bias = jnp.asarray(rng.normal(size=SHAPES[axes]), jnp.float32)

    def loss(y, bias):
        return (add_bias(y, add_leading_axes(bias, y.ndim), axes, rules) * mix).astype(jnp.float32).sum()

    run = jax.jit(jax.grad(loss, (0, 1)))
    assert run.lower(y, bias).as_text().count("dot_general") == 1
    d_y, d_bias = run(y, bias)
    np.testing.assert_array_equal(d_y, mix)
    assert d_bias.dtype == jnp.float32
    np.testing.assert_allclose(d_bias, np.asarray(mix, np.float64).sum((0, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("platform", "dtype"), [("cpu", jnp.bfloat16), ("tpu", jnp.float32)])
def test_elsewhere_and_of_float32_it_is_a_sum(monkeypatch, platform, dtype):
    """A TPU's products of float32 round their operands."""
    monkeypatch.setattr(Rules, "platform", platform)
    y, bias = jnp.ones((2, 3, 8), dtype), jnp.ones(8)
    gradient = jax.jit(
        jax.grad(
            lambda bias: add_bias(y, add_leading_axes(bias, y.ndim), ("act_embed",), Rules()).astype(jnp.float32).sum()
        )
    )
    assert "dot_general" not in gradient.lower(bias).as_text()
    np.testing.assert_array_equal(gradient(bias), np.full(8, 6.0))
