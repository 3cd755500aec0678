"""Dense maps to and from heads, whose dimensions a TPU has in one axis: the same numbers, parameters and gradients."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.tiny_models import tiny

from jaxlm.nn import layers
from jaxlm.nn.layers import ComputeConfig, dense
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules

MAPS = {
    # name: (axes of the input behind rows and columns, sizes, axes, contract)
    "queries": ((24,), (24, 4, 8), ("embed", "heads", "head_dim"), 1),
    "three at once": ((24,), (24, 3, 4, 8), ("embed", "qkv", "heads", "head_dim"), 1),
    "output": ((4, 8), (4, 8, 24), ("heads", "head_dim", "embed"), 2),
}


class Map(nn.Module):
    sizes: tuple[int, ...]
    axes: tuple[str, ...]
    contract: int
    compute: ComputeConfig
    config = SimpleNamespace(init_std=0.5)

    @nn.compact
    def __call__(self, x):
        init = nn.initializers.normal(0.5)
        return dense(self, "q", x, self.sizes, self.axes, contract=self.contract, init=init)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", MAPS)
def test_heads_in_one_axis_change_nothing(name, dtype, monkeypatch):
    inputs, sizes, axes, contract = MAPS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, *inputs)), jnp.float32)

    def both(rules):
        module = Map(sizes, axes, contract, ComputeConfig(dtype=dtype, rules=rules))
        params = nn.unbox(module.init(jax.random.key(0), x))
        params["params"]["q_bias"] = jnp.asarray(rng.normal(size=params["params"]["q_bias"].shape), jnp.float32)
        weights = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, *sizes[contract:])), jnp.float32)

        def loss(params, x):
            return (module.apply(params, x).astype(jnp.float32) * weights).sum()

        text = str(jax.make_jaxpr(module.apply)(params, x))
        return text, module.apply(params, x), jax.jit(jax.grad(loss, (0, 1)))(params, x)

    text, plain, gradients = both(Rules())
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 8, *inputs)), jnp.float32)
    monkeypatch.setattr(Rules, "platform", "tpu")
    merged_text, merged, merged_gradients = both(Rules(make_mesh(fsdp=2, tensor=2, context=2, data=1)))
    assert text.count("reshape") < merged_text.count("reshape")
    assert merged.shape == plain.shape and merged.dtype == plain.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 0.05
    np.testing.assert_allclose(*(np.asarray(y, np.float32) for y in (merged, plain)), atol=tolerance, rtol=tolerance)
    assert jax.tree.structure(merged_gradients) == jax.tree.structure(gradients)
    for ours, theirs in zip(jax.tree.leaves(merged_gradients), jax.tree.leaves(gradients), strict=True):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("family", ["bert", "deberta-v2", "mpnet", "t5"])
def test_heads_stay_apart_where_attention_adds_relative_positions(family, monkeypatch):
    merged = []

    def of_heads(compute, x, weights, axes, contract, name):
        merged.append(name)
        return affine(compute, x, weights._replace(heads_apart=True), axes, contract, name)

    affine = layers._affine
    monkeypatch.setattr(layers, "_affine_of_heads", of_heads)
    monkeypatch.setattr(Rules, "platform", "tpu")
    compute = ComputeConfig(rules=Rules(make_mesh(data=8)), attention="xla")
    jax.eval_shape(tiny(family, compute).init, jax.random.key(0))
    assert bool(merged) == (family == "bert")
