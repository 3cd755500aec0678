"""Products of rounded operands: values and gradients against NumPy, and where they are computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers.tiny_models import tiny

from jaxlm.config.model import ModelConfig
from jaxlm.errors import UserError
from jaxlm.nn.products import half_product, half_products_work, product, transposed_half_product
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.setup import model as setup_model


def rounded(x) -> np.ndarray:
    return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


@pytest.fixture
def fast_cpu() -> None:
    if not half_products_work():
        pytest.skip("this CPU has no instructions for bfloat16")


@pytest.mark.usefixtures("fast_cpu")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients(dtype):
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=(2, 5, *rest)), dtype) for rest in ((3, 4), (6, 2)))
    kernel = jnp.asarray(rng.normal(size=(3, 4, 6, 2)), dtype)

    @jax.jit
    def run(x, kernel):
        y, back = jax.vjp(lambda x, kernel: product(x, kernel, 2, flatten=True, half=True), x, kernel)
        return y, *back(g)

    y, d_x, d_kernel = run(x, kernel)
    low, weights, of_y = rounded(x).reshape(10, 12), rounded(kernel).reshape(12, 12), rounded(g).reshape(10, 12)
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    for found, expected in ((y, low @ weights), (d_x, of_y @ weights.T), (d_kernel, low.T @ of_y)):
        assert found.dtype == dtype
        np.testing.assert_allclose(
            np.asarray(found, np.float64).ravel(), expected.ravel(), rtol=tolerance, atol=tolerance
        )
    exact = np.asarray(x, np.float64).reshape(10, 12) @ np.asarray(kernel, np.float64).reshape(12, 12)
    if dtype == jnp.float32:
        assert 1e-4 < np.abs(np.asarray(y).reshape(10, 12) - exact).max() < 0.1  # it is rounded
        plain = product(x, kernel, 2, flatten=True, half=False)
        np.testing.assert_allclose(np.asarray(plain).reshape(10, 12), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("fast_cpu")
@pytest.mark.parametrize("shape", [(1, 64, 256), (33, 64, 3), (8, 2, 64)])
def test_transpositions_around_a_product_stay_outside_of_it(shape):
    """XLA folds them into products of float32, and has no such product of bfloat16."""
    n, d, e = shape
    x, table = (jnp.asarray(np.random.default_rng(0).normal(size=size), jnp.float32) for size in ((d, n), (e, d)))

    @jax.jit
    def run(x, table):
        def loss(x, table):
            y = transposed_half_product(x.T, table).T
            return jnp.square(y).sum() + jnp.square(half_product(x.T, table.T).T).sum()

        return jax.tree.map(jnp.transpose, jax.value_and_grad(loss, (0, 1))(x, table))

    value, (d_x, d_table) = run(x, table)
    y = rounded(x).T @ rounded(table).T
    np.testing.assert_allclose(value, 2 * np.square(y).sum(), rtol=1e-4)
    gradient = 4 * y
    np.testing.assert_allclose(d_x, (rounded(table).T @ gradient.T).T, rtol=0.02, atol=0.02 * np.abs(gradient).max())
    np.testing.assert_allclose(d_table, rounded(x) @ gradient, rtol=0.02, atol=0.02 * np.abs(gradient).max() * n)


@pytest.mark.parametrize(
    ("setting", "dtype", "has", "applied", "trained"),
    [
        ("auto", "float32", True, False, True),
        ("auto", "float32", False, False, False),
        ("float32", "float32", True, False, False),
        ("bfloat16", "float32", True, True, True),
        ("auto", "bfloat16", True, True, True),
        ("float32", "bfloat16", True, False, False),
    ],
)
def test_where_products_are_rounded(setting, dtype, has, applied, trained, monkeypatch):
    monkeypatch.setattr(setup_model, "half_products_work", lambda: has)
    config = ModelConfig.model_validate({"family": "bert", "matmul": setting, "dtype": dtype})
    compute = setup_model.make_compute(config, Rules())
    assert compute.half_products == applied
    assert setup_model.for_training(tiny("bert", compute), setting).compute.half_products == trained
    monkeypatch.setattr(setup_model, "half_products_work", lambda: False)
    if setting == "bfloat16":
        with pytest.raises(UserError, match="model.matmul=bfloat16: this CPU has no instructions"):
            setup_model.make_compute(config, Rules())
    several = setup_model.make_compute(config, Rules(make_mesh("ddp")))
    assert not setup_model.for_training(tiny("bert", several), setting).compute.half_products
