"""Learning rates by layer, L2 and the running average, against the formulas one number at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.finetuning_runs import run
from helpers.knob_runs import DRY, plan_of, train, write
from helpers.tiny_models import assert_close, tiny

from jaxlm.models.places import heights
from jaxlm.optim import make_optimizer
from jaxlm.optim.average import average_of, averaged
from jaxlm.optim.config import OptimizerConfig
from jaxlm.optim.gates import hold
from jaxlm.training.optimizer import describe_rates

STEPS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write(tmp_path_factory.mktemp("rates"))


def adam_by_hand(start: float, grads: list[float], *, rate: float, decay: float, l2: float) -> float:
    value, mu, nu = start, 0.0, 0.0
    for t, grad in enumerate(grads, start=1):
        grad += l2 * value
        mu, nu = 0.9 * mu + 0.1 * grad, 0.999 * nu + 0.001 * grad**2
        value -= rate * (mu / (1 - 0.9**t) / (np.sqrt(nu / (1 - 0.999**t)) + 1e-8) + decay * value)
    return value


@pytest.mark.parametrize("l2", [0.0, 0.5])
def test_each_layer_has_its_own_rate(l2):
    rng = np.random.default_rng(0)
    params = {"layers": rng.normal(size=(2, 3)).astype(np.float32), "head": rng.normal(size=2).astype(np.float32),
              "head_bias": rng.normal(size=2).astype(np.float32)}  # fmt: skip
    history = [jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params) for _ in range(STEPS)]
    rates = {"layers": np.array([0.25, 0.5]), "head": np.array(1.0), "head_bias": np.array(1.0)}
    axes = {"layers": ("layers", "embed"), "head": ("embed",), "head_bias": ("embed",)}
    settings = OptimizerConfig(learning_rate=0.1, schedule="constant", weight_decay=0.2, clip_norm=None, l2=l2)
    rule = make_optimizer(settings, STEPS, axes, rates)
    state, new = rule.init(params), params
    update = jax.jit(rule.update)
    for grads in history:
        updates, state = update(grads, state, new)
        new = optax.apply_updates(new, updates)
    for name, value in params.items():
        rate = np.broadcast_to(rates[name].reshape(-1, *[1] * (value.ndim - 1)), value.shape)
        for place in np.ndindex(value.shape):
            seen = [float(grads[name][place]) for grads in history]
            decays = {} if name == "head_bias" else {"decay": 0.2, "l2": l2}
            wanted = adam_by_hand(float(value[place]), seen, rate=0.1 * rate[place], **{"decay": 0, "l2": 0} | decays)
            assert float(new[name][place]) == pytest.approx(wanted, abs=2e-5), (name, place)


def test_rates_of_a_run_follow_the_heights(config):
    """One step of plain AdamW: each number moves by its rate, or by none where the gradient is 0."""
    keys = [*DRY, "optimizer.layer_decay=0.5", "optimizer.weight_decay=0", "optimizer.schedule=constant"]
    plan = plan_of(config, *keys)
    before, after, _ = train(plan, 1)
    found = heights(tiny("bert"), "key")  # as many layers
    for name in ("head/out", "trunk/stack/layers/v", "trunk/embed_norm_scale"):
        moved = np.abs(after[name] - before[name])
        for height, part in zip(np.atleast_1d(found[name]), moved if "layers" in name else [moved], strict=True):
            assert np.median(part) == pytest.approx(3e-3 * 0.5**height, rel=0.02), name
    rates = "head 0.003, layers from the top 0.0015 0.00075 0.000375, embeddings 0.000188"
    assert describe_rates(plan.setup) == rates


def test_the_average_is_that_of_the_formula():
    decay, rng = 0.8, np.random.default_rng(1)
    params, seen = {"w": jnp.asarray(rng.normal(size=5), jnp.float32)}, []
    rule = averaged(optax.sgd(0.3), decay)
    state, update = rule.init(params), jax.jit(rule.update)
    for t in range(1, 7):
        updates, state = update({"w": jnp.asarray(rng.normal(size=5), jnp.float32)}, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(np.asarray(params["w"], np.float64))
        wanted = sum((1 - decay) * decay ** (t - 1 - i) * value for i, value in enumerate(seen)) / (1 - decay**t)
        np.testing.assert_allclose(average_of(state)["w"], wanted, atol=1e-6)
    assert average_of(optax.sgd(0.1).init(params)) is None


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_what_is_held_still_is_its_own_average(decay):
    """Frozen layers of a stack, and layers whose turn has not come, are exported as they were, bit by bit."""
    params = {"w": jnp.asarray(np.random.default_rng(2).normal(size=500), jnp.float32)}
    rule = averaged(hold(optax.sgd(0.3), {"w": np.asarray(False)}), decay)
    state, update = rule.init(params), jax.jit(rule.update)
    for _ in range(3):
        _, state = update({"w": jnp.ones(500)}, state, params)
        np.testing.assert_array_equal(average_of(state)["w"], params["w"])


@pytest.mark.slow
def test_all_of_it_on_a_mesh_as_on_one_device(config):
    """The average is what a run evaluates and exports, split as the parameters are."""
    keys = [*DRY, "optimizer.layer_decay=0.8", "optimizer.l2=0.01", "train.ema=0.5"]
    one = train(plan_of(config, *keys), 2)[1]
    plan = plan_of(config, *keys, "mesh.preset=fsdp", devices=jax.devices())
    before, after, state = train(plan, 2)
    assert_close({name: after[name] - before[name] for name in after},
                 {name: one[name] - before[name] for name in one}, 2e-2)  # fmt: skip
    mean, params = average_of(state.opt_state)["trunk"]["tokens"], state.params["trunk"]["tokens"]
    np.testing.assert_array_equal(after["trunk/tokens"], mean)
    assert np.abs(mean - params).max() > 0 and mean.sharding == params.sharding
    assert plan.scored_params(state) is average_of(state.opt_state)


@pytest.mark.parametrize(
    ("override", "message"),
    [("train.ema=1", "train.ema: expected number > 0 and < 1"), ("optimizer.layer_decay=0", "optimizer.layer_decay")],
)
def test_values_out_of_range_are_refused(config, override, message, capsys):
    assert run("finetune", "--config", config, override) == 2
    assert message in capsys.readouterr().err
