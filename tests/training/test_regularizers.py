"""R-Drop, adversarial embeddings and skipped layers against plain implementations, and what they refuse."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from helpers.finetuning_runs import run
from helpers.knob_runs import DRY, plan_of, train, weights_when_resumed, write
from helpers.tiny_models import assert_close

from jaxlm.errors import UserError
from jaxlm.nn.layers import ComputeConfig
from jaxlm.nn.stacks import run_stack
from jaxlm.objectives.classification import multiclass_loss
from jaxlm.objectives.r_drop import divergence, r_drop
from jaxlm.training.adversarial import fast_gradient
from jaxlm.training.gradients import accumulated_gradients

ROWS, IDS, WIDTH, CLASSES = 6, 5, 3, 4


def model(params, frozen, batch, key):
    """Looks tokens up and maps them to classes; a third of the features are dropped."""
    x = params["trunk"]["tokens"][batch["tokens"]]
    if key is not None:
        x = jnp.where(jax.random.bernoulli(key, 2 / 3, x.shape), x, 0.0)
    return jnp.tanh(x) @ params["head"]


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"trunk": {"tokens": draw(IDS, WIDTH), "types": draw(2, WIDTH)}, "head": draw(WIDTH, CLASSES)}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return {"tokens": jnp.asarray(rng.integers(0, IDS, ROWS)), "labels": jnp.asarray(rng.integers(0, CLASSES, ROWS)),
            "weights": jnp.asarray([1, 0.5, 0, 1, 2, 1], jnp.float32)}  # fmt: skip


def micro(batch, number: int):
    return {name: value.reshape(number, -1) for name, value in batch.items()}


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_divergence_is_the_mean_of_both_kl():
    rng = np.random.default_rng(2)
    first, second = rng.normal(size=(2, 7, CLASSES)) * 2
    p, q = log_softmax(first), log_softmax(second)
    wanted = ((np.exp(p) * (p - q)).sum(-1) + (np.exp(q) * (q - p)).sum(-1)) / 2
    as_arrays = [jnp.asarray(x, jnp.float32) for x in (first, second)]
    np.testing.assert_allclose(divergence(*as_arrays, "softmax"), wanted, rtol=1e-4)
    p, q = 1 / (1 + np.exp(-first)), 1 / (1 + np.exp(-second))
    kl = lambda a, b: a * np.log(a / b) + (1 - a) * np.log((1 - a) / (1 - b))  # noqa: E731
    wanted = ((kl(p, q) + kl(q, p)) / 2).mean(-1)
    np.testing.assert_allclose(divergence(*as_arrays, "sigmoid"), wanted, rtol=1e-4)


def test_r_drop_is_two_passes_and_their_divergence(params, batch):
    alpha, key = 0.7, jax.random.key(5)
    twice, loss = r_drop(model, multiclass_loss(), alpha, "softmax")
    gradients = jax.jit(accumulated_gradients(twice, loss))
    for number in (2,):
        total = weight = 0.0
        for i, k in enumerate(jax.random.split(key, number)):
            one = jax.tree.map(lambda x, i=i: x[i], micro(batch, number))
            p, q = (log_softmax(model(params, {}, one, half)) for half in jax.random.split(k))
            rows, labels, w = np.arange(len(p)), np.asarray(one["labels"]), np.asarray(one["weights"], np.float64)
            crossed = -(p[rows, labels] + q[rows, labels]) / 2
            apart = ((np.exp(p) * (p - q)).sum(-1) + (np.exp(q) * (q - p)).sum(-1)) / 2
            total, weight = total + (w * (crossed + alpha * apart)).sum(), weight + w.sum()
        grads, found = gradients(params, {}, micro(batch, number), key)
        assert float(found) == pytest.approx(total / weight, rel=1e-5)
        assert np.abs(grads["head"]).max() > 0


def test_the_embeddings_are_moved_along_their_gradient(params, batch):
    epsilon, loss = 0.5, multiclass_loss()

    def mean(params):
        total, weight = loss(model(params, {}, batch, None), batch)
        return total / weight

    still = lambda params, frozen, one, key: model(params, frozen, one, None)  # noqa: E731
    value, grads = jax.value_and_grad(mean)(params)
    table = np.asarray(grads["trunk"]["tokens"], np.float64)
    moved = params["trunk"]["tokens"] + jnp.asarray(epsilon * table / np.linalg.norm(table), jnp.float32)
    worst, others = jax.value_and_grad(mean)({**params, "trunk": {**params["trunk"], "tokens": moved}})
    assert worst > value
    for number in (1, 3):
        gradients = jax.jit(fast_gradient(accumulated_gradients(still, loss), epsilon))
        found, both = gradients(params, {}, micro(batch, number), jax.random.key(0))
        assert float(both) == pytest.approx((float(value) + float(worst)) / 2, rel=1e-5)
        assert_close(found, jax.tree.map(lambda g, h: (g + h) / 2, grads, others), 1e-4)


def test_layers_are_skipped_as_often_as_asked():
    number, rate = 64, 0.25
    layers = jnp.asarray(np.arange(16).repeat(4), jnp.float32)
    apply = lambda layer, x, key: x + jax.nn.one_hot(layer.astype(jnp.int32), 16)  # noqa: E731
    start, runs = jnp.zeros(16), []
    for unroll in (1, number):
        compute = ComputeConfig(unroll=unroll, layer_drop=rate)
        step = jax.jit(lambda key, compute=compute: run_stack(apply, layers, start, key, compute))
        runs.append(np.stack([step(jax.random.key(seed)) for seed in range(8)]))
        np.testing.assert_array_equal(run_stack(apply, layers, start, None, compute), np.full(16, 4.0))
    np.testing.assert_array_equal(*runs)
    assert len(np.unique(runs[0], axis=0)) == 8
    kept = runs[0].sum() / (8 * number)
    assert abs(kept - (1 - rate)) < 5 * (rate * (1 - rate) / (8 * number)) ** 0.5
    compute = ComputeConfig(layer_drop=0.999)
    last = lambda layer, x, key: x[:2]  # noqa: E731
    assert run_stack(apply, layers, start, jax.random.key(0), compute, last).shape == (2,)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write(tmp_path_factory.mktemp("regularized"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.r_drop=1", *DRY], r"train\.r_drop: the model has no dropout"),
        (["train.r_drop=1", "task.label=id", "task.problem=regression"], r"train\.r_drop: .* task regression has none"),
        (["train.fgm=1", "model.freeze=[embeddings]"], r"train\.fgm: .* they are frozen"),
        (["optimizer.layer_decay=0.5", "model.freeze=[trunk]"], r"layer_decay: nothing below the head is trained"),
        (["train.unfreeze_every=1", "model.freeze=[trunk]"], r"unfreeze_every: nothing below the head is trained"),
        (["task.calibration=temperature", "data.validation=null"], r"task\.calibration: expected data\.validation"),
    ],
)
def test_what_has_no_meaning_is_refused(config, overrides, message):
    with pytest.raises(UserError, match=message):
        plan_of(config, *overrides)


KNOBS = {
    "train": {"r_drop": 1.0, "fgm": 0.5, "ema": 0.5},
    "model": {"layer_drop": 0.4},
    "optimizer": {"layer_decay": 0.8},
}


@pytest.mark.slow
def test_all_of_it_on_a_mesh_as_on_one_device(tmp_path):
    """Skipped layers are drawn alike on every mesh; dropout is by the place in a row, and a mesh may pack otherwise."""
    config = write(tmp_path, **KNOBS)
    one = train(plan_of(config, *DRY), 2)[1]
    found = train(plan_of(config, *DRY, "mesh.preset=fsdp", devices=jax.devices()), 2)[1]
    assert_close(found, one, 2e-2)


@pytest.mark.slow
def test_all_of_it_is_resumed_bit_for_bit(tmp_path):
    whole, resumed = weights_when_resumed(write(tmp_path, **KNOBS, checkpoint={"keep": 5}), 2)
    assert whole == resumed


@pytest.mark.slow
def test_mixout_falls_back_on_the_same_weights_when_resumed(tmp_path):
    assert run("finetune", "--config", write(tmp_path / "first")) == 0
    path = write(tmp_path / "second", checkpoint={"keep": 5})
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config["model"] = {"init": str(tmp_path / "first/runs/tiny"), "mixout": 0.4}
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    whole, resumed = weights_when_resumed(path, 2)
    assert whole == resumed
    assert run("finetune", "--config", path, "model.mixout=0", "name=plain") == 0
    assert (tmp_path / "second/runs/plain/model/model.safetensors").read_bytes() != whole
