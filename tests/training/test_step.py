"""The train step on a linear model: micro-batches, weights, and parameters that are frozen under an adapter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.saved_states import checkpointer, tree_digest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.objectives import without_frozen
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.training import manifest
from jaxlm.training.gradients import accumulated_gradients
from jaxlm.training.state import TrainState, abstract_state, init_state, saved_part, state_shardings
from jaxlm.training.step import make_train_step

ROWS, INPUTS, OUTPUTS = 8, 16, 8
RULES = Rules(make_mesh("fsdp"))
ADAM = optax.adam(1e-1)


def arrays(*names: str, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"tokens": (ROWS, INPUTS), "labels": (ROWS, OUTPUTS), "weights": (ROWS,)}
    return {name: rng.standard_normal(shapes.get(name, (INPUTS, OUTPUTS)), np.float32) for name in names}


def batch(num_micro: int = 1) -> dict[str, jax.Array]:
    made = arrays("tokens", "labels") | {"weights": np.array([1, 0, 0.5, 2, 0, 0, 1, 0.25], np.float32)}
    return {name: jnp.asarray(x.reshape(num_micro, -1, *x.shape[1:])) for name, x in made.items()}


def squared_error(outputs, batch):
    return ((outputs - batch["labels"]) ** 2 * batch["weights"][:, None]).sum(), batch["weights"].sum()


def adapted(params, frozen, batch, key):
    """`base` is read, and `delta` is trained on top of it."""
    return batch["tokens"] @ (frozen["base"] + params["delta"])


def full(params, batch, key):
    return batch["tokens"] @ params["base"]


@pytest.mark.parametrize("num_micro", [1, 2, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(num_micro):
    weight = arrays("base")["base"]
    gradients = jax.jit(accumulated_gradients(without_frozen(full), squared_error))
    grads, loss = gradients({"base": jnp.asarray(weight)}, {}, batch(num_micro), jax.random.key(0))
    x, y, w = (np.asarray(batch()[name][0], np.float64) for name in ("tokens", "labels", "weights"))
    error = x @ weight - y
    np.testing.assert_allclose(loss, (error**2 * w[:, None]).sum() / w.sum(), rtol=1e-5)
    np.testing.assert_allclose(grads["base"], 2 * x.T @ (error * w[:, None]) / w.sum(), rtol=1e-4, atol=1e-4)


def test_a_batch_without_weight_changes_nothing():
    empty = batch(2) | {"weights": jnp.zeros((2, ROWS // 2))}
    gradients = jax.jit(accumulated_gradients(adapted, squared_error))
    grads, loss = gradients(arrays("delta"), arrays("base", seed=1), empty, jax.random.key(0))
    assert loss == 0 and not np.asarray(grads["delta"]).any()


@pytest.fixture(scope="module")
def trained():
    """The step under an adapter, and the states before and after three steps; on eight devices."""
    sharded = NamedSharding(RULES.mesh, PartitionSpec("fsdp"))
    frozen = jax.device_put(arrays("base"), sharded)
    before = init_state({"delta": jax.device_put(np.zeros((INPUTS, OUTPUTS), np.float32), sharded)}, ADAM,
                        jax.random.key(0), RULES, frozen=frozen)  # fmt: skip
    shardings = state_shardings(before.params, ADAM, RULES, frozen=frozen)
    gradients = accumulated_gradients(adapted, squared_error)
    step = jax.jit(
        make_train_step(gradients, ADAM, optax.constant_schedule(1e-1)),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    state, losses = jax.tree.map(jnp.copy, before), []
    for _ in range(3):
        state, metrics = step(state, batch(2))
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)
    return step, before, state


def test_frozen_parameters_are_read_but_not_trained(trained):
    _, before, state = trained
    assert tree_digest(state.frozen) == tree_digest(before.frozen)
    assert state.frozen["base"].sharding == before.frozen["base"].sharding
    assert len(jax.tree.leaves(state.opt_state)) == 3  # count and two moments of `delta`
    # As if the sum had been trained itself.
    gradients = accumulated_gradients(without_frozen(full), squared_error)
    step = jax.jit(make_train_step(gradients, ADAM, optax.constant_schedule(1e-1)))
    whole = TrainState(jnp.int32(0), arrays("base"), ADAM.init(arrays("base")), jax.random.key(0))
    for _ in range(3):
        whole, _ = step(whole, batch(2))
    expected = np.asarray(whole.params["base"])
    np.testing.assert_allclose(state.frozen["base"] + state.params["delta"], expected, rtol=1e-4, atol=1e-4)


def test_checkpoints_hold_no_frozen_parameters_and_resume_bit_for_bit(trained, tmp_path):
    step, before, state = trained
    with checkpointer(tmp_path) as saver:
        saver.save(3, saved_part(state), {}, wait=True)
        assert not any("base" in leaf or "frozen" in leaf for leaf in manifest.read(tmp_path / "3")["leaves"])
        wanted = abstract_state(before.params, ADAM, jax.random.key(0), RULES, frozen=before.frozen)
        assert wanted.frozen["base"].sharding == before.frozen["base"].sharding
        _, saved, _ = saver.restore(saved_part(wanted))
    restored = TrainState(**saved, frozen=jax.tree.map(jnp.copy, before.frozen))
    assert tree_digest(restored) == tree_digest(state)
    assert tree_digest(step(restored, batch(2))[0]) == tree_digest(step(jax.tree.map(jnp.copy, state), batch(2))[0])
