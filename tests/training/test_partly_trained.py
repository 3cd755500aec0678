"""Frozen parameters, gradual unfreezing and new top layers, in training steps and whole runs."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.finetuning_runs import run
from helpers.knob_runs import DRY, plan_of, train, weights_when_resumed, write
from helpers.tiny_models import assert_close, tiny, weights
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.errors import UserError
from jaxlm.models.base import flatten
from jaxlm.models.reinit import reinit_layers
from jaxlm.optim.gates import hold, unfreeze
from jaxlm.parallel.mesh import make_mesh
from jaxlm.training.state import fingerprint

FREEZE = "model.freeze=[embeddings, layers.0-1]"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write(tmp_path_factory.mktemp("partly"))


def changed(before, after):
    """Of each parameter whether any number differs; of stacked ones, layer by layer."""
    found = {}
    for name, value in before.items():
        different = value.view(np.uint32) != after[name].view(np.uint32)
        stacked = "/layers/" in name
        found[name] = different.reshape(len(value), -1).any(1).tolist() if stacked else bool(different.any())
    return found


@pytest.mark.slow
def test_frozen_parameters_are_kept_bit_by_bit_and_the_others_trained_as_alone(config):
    plan = plan_of(config, FREEZE, *DRY)
    before, after, state = train(plan, 3)
    for name, found in changed(before, after).items():
        if "/layers/" in name:
            assert found[:2] == [False, False], name
        else:
            assert found == name.startswith("head/"), name
    assert changed(before, after)["trunk/stack/layers/q"] == [False, False, True]
    assert not any("tokens" in name for name in flatten(state.params)) and "trunk/tokens" in flatten(state.frozen)
    assert not any("tokens" in jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(state.opt_state))

    # The same by plain optax over all parameters, those that are frozen put back after every step.
    setup = plan.setup
    mask = {name: np.ones(value.shape, bool) for name, value in before.items()}
    for name in mask:
        if "/layers/" in name:
            mask[name][:2] = False
        elif not name.startswith("head/"):
            mask[name][...] = False
    fresh = plan_of(config, FREEZE, *DRY)
    params, _ = fresh.setup.init_params()
    rate = setup.config.optimizer.learning_rate
    decays = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
        lambda path, _: not str(path[-1].key).endswith(("_bias", "_scale")), tree
    )
    plain = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.linear_schedule(rate, 0.0, 4), weight_decay=0.01, mask=decays),
    )
    masks = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(mask[jax.tree_util.keystr(path, simple=True, separator="/")]), params
    )

    @jax.jit
    def step(params, opt_state, batch):
        def loss(params):
            total, weight = setup.task.loss(setup.model.apply(params, batch), batch)
            return total / weight

        grads = jax.tree.map(lambda g, m: jnp.where(m, g, 0), jax.grad(loss)(params), masks)
        updates, opt_state = plain.update(grads, opt_state, params)
        return jax.tree.map(lambda p, u, m: jnp.where(m, p + u, p), params, updates, masks), opt_state

    opt_state = plain.init(params)
    for _ in range(3):
        batch = {name: value[0] for name, value in fresh.to_device(next(fresh.loader)).items()}
        params, opt_state = step(params, opt_state, batch)
    fresh.loader.close()
    assert_close(after, flatten(jax.device_get(params)), 1e-4)


@pytest.mark.slow
def test_a_mesh_trains_the_same_part(config):
    one = train(plan_of(config, FREEZE, *DRY), 2)[1]
    plan = plan_of(config, FREEZE, *DRY, "mesh.preset=fsdp", "train.grad_accum_steps=2", devices=jax.devices())
    before, after, state = train(plan, 2)
    assert_close(after, one, 1e-3)
    assert changed(before, after)["trunk/tokens"] is False
    frozen = flatten(state.frozen)["trunk/tokens"]
    assert len({str(shard.index) for shard in frozen.addressable_shards}) == 8


def test_held_layers_keep_the_sign_of_zero():
    params = {"w": jnp.array([[-0.0, 1.0], [2.0, -0.0]])}
    rule = hold(optax.sgd(1.0), {"w": np.array([False, True])})
    updates, _ = rule.update({"w": jnp.array([[3.0, 4.0], [5.0, 0.0]])}, rule.init(params), params)
    new = optax.apply_updates(params, updates)["w"]
    np.testing.assert_array_equal(new, [[0, 1], [-3, 0]])
    assert np.signbit(new[0, 0])


def test_layers_are_opened_one_by_one_from_the_top():
    heights = {"head": np.array(0), "layers": np.array([2, 1]), "tokens": np.array(3)}
    params = {"head": jnp.zeros(1), "layers": jnp.zeros((2, 1)), "tokens": jnp.zeros(1)}
    rule = unfreeze(optax.adam(1.0), heights, 2)
    update = jax.jit(rule.update)
    state, steps = rule.init(params), []
    for _ in range(8):
        updates, state = update(jax.tree.map(jnp.ones_like, params), state, params)
        flat = [updates["head"][0], updates["layers"][1, 0], updates["layers"][0, 0], updates["tokens"][0]]
        assert all(abs(value) in (0, pytest.approx(1, abs=1e-3)) for value in flat)
        steps.append([bool(value) for value in flat])
    assert steps == [[True] * (1 + i // 2) + [False] * (3 - i // 2) for i in range(8)]


def test_top_layers_start_afresh():
    model = tiny("bert")
    before, drawn = weights(model), jax.device_get(jax.jit(model.init)(jax.random.key(3)))
    after = flatten(jax.device_get(reinit_layers(jax.tree.map(jnp.asarray, before), model, 2, jax.random.key(3))))
    for name, value in flatten(before).items():
        stacked = "/layers/" in name
        np.testing.assert_array_equal(after[name][:1] if stacked else after[name], value[:1] if stacked else value)
        if stacked:
            np.testing.assert_allclose(after[name][1:], flatten(drawn)[name][1:], atol=1e-7)
    with pytest.raises(UserError, match=r"model\.reinit_layers=4: the model has 3 layers"):
        reinit_layers(before, model, 4, jax.random.key(0))


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit_and_counts_what_it_trains(tmp_path, capsys):
    config = write(
        tmp_path, model={"freeze": ["embeddings", "layers.0"]}, train={"unfreeze_every": 1}, checkpoint={"keep": 5}
    )
    whole, resumed = weights_when_resumed(config, 2)
    assert whole == resumed
    summary = json.loads((tmp_path / "runs/tiny/summary.json").read_text())["model"]
    assert summary["trained_parameters"] + summary["frozen_parameters"] == summary["parameters"]
    assert summary["frozen_parameters"] > 200 * 16
    assert f"parameters of which {summary['trained_parameters']} are trained" in capsys.readouterr().err
    assert run("evaluate", "--run", tmp_path / "runs/tiny", "--split", "validation") == 0


def test_frozen_parameters_are_told_apart_whatever_the_mesh():
    params = tiny("bert").init(jax.random.key(0))
    other = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-6), params)
    mesh = NamedSharding(make_mesh("fsdp", fsdp=8), PartitionSpec("fsdp"))
    split = jax.tree.map(lambda x: jax.device_put(x, mesh) if x.shape[0] % 8 == 0 else x, params)
    assert fingerprint(params) == fingerprint(split) != fingerprint(other) and fingerprint({}) == ""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.freeze=[layers.9]", "model.freeze: layers.9: expected layers of 0 to 2"),
        ("model.reinit_layers=1", "reinit_layers: only for the layers of a pretrained model"),
        ("train.unfreeze_every=0", "train.unfreeze_every"),
    ],
)
def test_mistakes_are_named(config, override, message, capsys):
    assert run("finetune", "--config", config, override) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("every", "words"), [(3, "only the top 1 layers and the head"), (9, "the head alone"), (1, "")]
)
def test_layers_whose_turn_never_comes_are_told(config, caplog, every, words):
    """The run has five steps, and below the head three layers and the embeddings."""
    with caplog.at_level("WARNING", "jaxlm"):
        plan_of(config, f"train.unfreeze_every={every}", "train.steps=5").loader.close()
    said = [message for message in caplog.messages if "unfreeze_every" in message]
    assert len(said) == bool(words) and all(words in message for message in said)
