"""Norms: their formulas, and gradients that equal those of the chain rule and keep little for the backward pass."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxlm.nn.norms import layer_norm, normalize, rms_norm

RNG = np.random.default_rng(0)
SHAPE = (3, 5, 2, 24)


class Norm(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        if self.kind == "rms":
            return rms_norm(self, "n", x, 0.1)
        return layer_norm(self, "n", x, 0.1, bias=self.kind == "layer")


def parameters(kind: str) -> dict[str, jax.Array]:
    names = ("n_scale", "n_bias") if kind == "layer" else ("n_scale",)
    return {name: jnp.asarray(RNG.uniform(0.5, 2, SHAPE[-1:]), jnp.float32) for name in names}


def by_the_formula(kind: str, params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """In float32, as Ba et al. and Zhang & Sennrich write it."""
    x = x.astype(jnp.float32)
    if kind != "rms":
        x = x - x.mean(-1, keepdims=True)
    with jax.numpy_rank_promotion("allow"):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 0.1) * params["n_scale"] + params.get("n_bias", 0.0)


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("kind", ["layer", "without bias", "rms"])
def test_values_and_gradients_are_the_formulas(kind, dtype, tolerance):
    x = jnp.asarray(RNG.normal(1.0, 2.0, SHAPE), dtype)
    weights = jnp.asarray(RNG.normal(size=SHAPE), dtype).astype(jnp.float32)
    params = parameters(kind)

    def loss(norm):
        return lambda params, x: (norm(params, x).astype(jnp.float32) * weights).sum()

    ours = jax.jit(jax.value_and_grad(loss(lambda p, x: Norm(kind).apply({"params": p}, x)), argnums=(0, 1)))(params, x)
    plain = jax.value_and_grad(loss(lambda p, x: by_the_formula(kind, p, x)), argnums=(0, 1))(params, x)
    assert jax.tree.structure(ours) == jax.tree.structure(plain) and ours[1][1].dtype == dtype
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        mine, theirs = (np.asarray(leaf, np.float32) for leaf in (mine, theirs))
        np.testing.assert_allclose(mine, theirs, atol=tolerance * max(1, np.abs(theirs).max()), rtol=0)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_the_backward_pass_keeps_the_input_alone(kind):
    x = jnp.ones(SHAPE, jnp.bfloat16)
    _, backward = jax.vjp(lambda p, x: Norm(kind).apply({"params": p}, x), parameters(kind), x)
    kept = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= x.size]
    assert [leaf.dtype for leaf in kept] == [jnp.bfloat16]


def test_what_no_half_precision_holds_is_computed_in_float32():
    large = jnp.full(SHAPE, 300.0, jnp.float16)  # whose square no float16 holds
    params = parameters("rms")
    out = Norm("rms").apply({"params": params}, large)
    np.testing.assert_allclose(np.asarray(out)[0, 0, 0], np.asarray(params["n_scale"]), rtol=1e-2)
    assert normalize(large, params["n_scale"], None, 0.1).dtype == jnp.float16
