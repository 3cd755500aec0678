"""Update rules against references that take one matrix of one layer at a time; their states stored, split, resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from tiny import tiny
from tinyrun import run, write_config

from jaxlm.checkpoint import Checkpointer
from jaxlm.config import OptimizerConfig
from jaxlm.errors import UserError
from jaxlm.layers import Compute
from jaxlm.manifest import tree_digest
from jaxlm.models import FAMILIES
from jaxlm.models.base import flatten
from jaxlm.optim import decay_mask, make_optimizer
from jaxlm.optim.matrices import Blocks, blocks_of
from jaxlm.optim.moments import round_stochastic
from jaxlm.sharding import Rules, make_mesh
from jaxlm.state import HOST_MEMORY, abstract_state, init_state, offloaded, state_shardings

SHAPES = {"q": (2, 8, 2, 6), "q_bias": (2, 2, 6), "o": (2, 2, 6, 8), "fused": (2, 8, 3, 2, 6), "tokens": (9, 8),
          "norm_scale": (8,), "dense": (8, 5)}  # fmt: skip
AXES = {"q": ("layers", "embed", "heads", "head_dim"), "q_bias": ("layers", "heads", "head_dim"),
        "o": ("layers", "heads", "head_dim", "embed"), "fused": ("layers", "embed", "qkv", "heads", "head_dim"),
        "tokens": ("vocab", "embed"), "norm_scale": ("norm",), "dense": ("embed", "embed_in")}  # fmt: skip
FACTORED_FROM = "jaxlm.optim.adafactor._FACTORED_FROM"
TABLES, PLAIN = {"tokens"}, {"q_bias", "norm_scale"}
RATE, DECAY = 0.01, 0.1
CHOICES = {
    "adamw": {},
    "adamw-bfloat16": {"moments": "bfloat16"},
    "adafactor": {"name": "adafactor"},
    "muon": {"name": "muon"},
    "muon-bfloat16": {"name": "muon", "moments": "bfloat16"},
}
choices = pytest.mark.parametrize("choice", CHOICES)


def optimizer_of(axes: Any, steps: int = 10, **keys: Any) -> optax.GradientTransformation:
    keys = {"learning_rate": RATE, "weight_decay": DECAY, "schedule": "constant", "clip_norm": None} | keys
    return make_optimizer(OptimizerConfig(**keys), steps, axes)


def draw(shapes: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: rng.normal(0, 0.1, shape).astype(np.float32), shapes, is_leaf=is_shape)


def gradients(num: int) -> list[dict[str, np.ndarray]]:
    """Of sizes that differ from layer to layer, so that a mean over layers would show."""
    made = [draw(SHAPES, seed) for seed in range(num)]
    return [{name: g * (1 + 9 * np.arange(len(g)).reshape(-1, *[1] * (g.ndim - 1))).astype(np.float32)
             for name, g in one.items()} for one in made]  # fmt: skip


def trained(axes: Any, num: int = 4, **keys: Any) -> dict[str, np.ndarray]:
    optimizer, params = optimizer_of(axes, **keys), draw(SHAPES, 100)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for grads in gradients(num):
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params)


def parts(name: str, value: np.ndarray) -> list[np.ndarray]:
    """Views of one parameter's matrices and vectors, layer by layer, with heads joined."""
    if name == "fused":
        return [value[layer, :, kind].reshape(8, 12) for layer in range(2) for kind in range(3)]
    if name in ("q", "o"):
        return [layer.reshape((8, 12) if name == "q" else (12, 8)) for layer in value]
    return list(value.reshape(2, -1)) if name == "q_bias" else [value]


def by_hand(rule: Any, num: int = 4) -> dict[str, list[np.ndarray]]:
    """Parameters after `num` steps of `rule(name, part, gradients so far) -> direction`, one part at a time."""
    params = {
        name: [part.astype(np.float64) for part in parts(name, value)] for name, value in draw(SHAPES, 100).items()
    }
    history = gradients(num)
    for step in range(1, num + 1):
        for name, values in params.items():
            for i, value in enumerate(values):
                seen = [parts(name, grads[name])[i].astype(np.float64) for grads in history[:step]]
                decay = 0 if name.endswith(("_bias", "_scale")) else DECAY
                values[i] = value - RATE * (rule(name, value, seen) + decay * value)
    return params


def expect(found: dict[str, np.ndarray], wanted: dict[str, list[np.ndarray]], tolerance: float = 1e-5) -> None:
    start = draw(SHAPES, 100)
    for name, values in wanted.items():
        for before, part, value in zip(parts(name, start[name]), parts(name, found[name]), values, strict=True):
            moved = np.abs(value - before).max()
            np.testing.assert_allclose(part, value, rtol=0, atol=tolerance * max(moved, 0.01), err_msg=name)


def adam(name: str, value: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    t = len(seen)
    mu = sum(0.1 * 0.9 ** (t - 1 - i) * g for i, g in enumerate(seen)) / (1 - 0.9**t)
    nu = sum(0.001 * 0.999 ** (t - 1 - i) * g**2 for i, g in enumerate(seen)) / (1 - 0.999**t)
    return mu / (np.sqrt(nu) + 1e-8)


def adafactor(name: str, value: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """Shazeer & Stern (2018), algorithms 4 and 5, with the hyper-parameters of section 9."""
    row = column = whole = 0.0
    for t, g in enumerate(seen, start=1):
        beta = 1 - t**-0.8
        if g.ndim == 2:
            row = beta * row + (1 - beta) * (g**2 + 1e-30).sum(1)
            column = beta * column + (1 - beta) * (g**2 + 1e-30).sum(0)
            second = np.outer(row, column) / np.sum(row)
        else:
            second = whole = beta * whole + (1 - beta) * (g**2 + 1e-30)
    u = seen[-1] / np.sqrt(second)
    u = u / max(1, np.sqrt(np.mean(u**2)))
    return u * max(1e-3, np.sqrt(np.mean(value**2)))


def muon(name: str, value: np.ndarray, seen: list[np.ndarray]) -> np.ndarray:
    """Jordan (2024), with optax's bias correction and the scale of Liu et al. (2025)."""
    if name in TABLES | PLAIN:
        return adam(name, value, seen)
    t = len(seen)
    mu = sum(0.05 * 0.95 ** (t - 1 - i) * g for i, g in enumerate(seen))
    x = 0.95 * mu / (1 - 0.95 ** (t + 1)) + 0.05 * seen[-1] / (1 - 0.95**t)
    x = x / (np.linalg.norm(x) + 1e-8)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return 0.2 * np.sqrt(max(x.shape)) * x


def test_adamw_is_the_paper_s():
    expect(trained(AXES), by_hand(adam))


def test_adafactor_takes_each_layer_s_matrix_by_itself(monkeypatch):
    monkeypatch.setattr(FACTORED_FROM, 2)
    expect(trained(AXES, name="adafactor"), by_hand(adafactor), 1e-4)


def test_muon_takes_each_layer_s_matrix_by_itself():
    expect(trained(AXES, name="muon"), by_hand(muon), 1e-3)


def test_momentum_is_muon_s():
    assert not np.allclose(trained(AXES, name="muon", momentum=0.5)["q"], trained(AXES, name="muon")["q"], atol=1e-4)


def test_matrices_are_told_by_their_axes():
    assert blocks_of(("layers", "embed", "kv_heads", "head_dim")) == Blocks((1, 2, 3), (1,), (2, 3), False)
    assert blocks_of(("layers", "heads", "head_dim", "embed")) == Blocks((1, 2, 3), (1, 2), (3,), False)
    assert blocks_of(("layers", "embed", "gates", "hidden")) == Blocks((1, 3), (1,), (3,), False)
    assert blocks_of(("embed", "classes")) == Blocks((0, 1), (0,), (1,), True)
    assert blocks_of(("layers", "heads", "head_dim")) == Blocks((1, 2), (), (), False)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kernel_of_a_family_is_a_matrix(family):
    """All but embeddings, output layers, norms and biases; a new axis name must not make them vectors."""
    for name, axes in flatten(tiny(family).axes).items():
        block = blocks_of(axes)
        vector = name.endswith(("_bias", "_scale")) and not name.endswith("relative_bias")
        assert bool(block.rows) != vector, name
        kind = name.split("/")[-1]
        table = kind in ("tokens", "positions", "types", "unembed", "relative_bias", "out", "detect_out")
        assert not block.rows or block.table == table, name


def test_weight_decay_spares_biases_and_norms():
    mask = decay_mask(draw(SHAPES, 0))
    assert {name for name, decays in mask.items() if not decays} == PLAIN


def state_bytes(optimizer: optax.GradientTransformation, params: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(optimizer.init, params)))


def test_bytes_of_the_state():
    """What docs/optimizers.md says of a model whose matrices outweigh the rest."""
    shapes = {"q": (4, 256, 4, 64), "up": (4, 256, 512), "tokens": (512, 256)}
    axes = {"q": AXES["q"], "up": ("layers", "embed", "mlp"), "tokens": ("vocab", "embed")}
    params = draw(shapes, 0)
    hidden, table = (4 * 256 * 256 + 4 * 256 * 512), 512 * 256
    found = {choice: state_bytes(optimizer_of(axes, **keys), params) for choice, keys in CHOICES.items()}
    few = 100  # counts, and Muon's coefficients
    assert 0 <= found["adamw"] - 8 * (hidden + table) < few
    assert 0 <= found["adamw-bfloat16"] - 4 * (hidden + table) < few
    assert 0 <= found["muon"] - (4 * hidden + 8 * table) < few
    assert 0 <= found["muon-bfloat16"] - (2 * hidden + 4 * table) < few
    assert 0 <= found["adafactor"] - 4 * (4 * 512 + 4 * 768 + 768) < few


@choices
def test_moments_are_stored_as_asked(choice):
    optimizer = optimizer_of(AXES, **CHOICES[choice])
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, draw(SHAPES, 0)))
    wanted = jnp.bfloat16 if choice.endswith("bfloat16") else jnp.float32
    assert {leaf.dtype for leaf in leaves if leaf.ndim > 1} == {jnp.dtype(wanted)}


def test_stochastic_rounding_is_right_on_average_and_exact_where_it_can_be():
    x = jnp.asarray([1.0, 1.0 + 2**-9, -3.0 - 2**-8, 0.0, 1e-30], jnp.float32)
    draws = jax.vmap(lambda key: round_stochastic(x, key))(jax.random.split(jax.random.key(0), 20_000))
    assert draws.dtype == jnp.bfloat16
    draws = np.asarray(draws, np.float64)
    np.testing.assert_allclose(draws.mean(0), np.asarray(x, np.float64), rtol=1e-4)
    assert {1.0} == set(draws[:, 0]) and {0.0} == set(draws[:, 3]) and {1.0, 1.0078125} == set(draws[:, 1])


def test_a_second_moment_in_bfloat16_falls_as_one_in_float32():
    """Rounded to the nearest it would stay where it was: a step takes a thousandth, half a neighbour is 2^-9."""
    axes, params = {"w": ("norm",)}, {"w": np.zeros(4096, np.float32)}
    moments = {}
    for stored in ("float32", "bfloat16"):
        optimizer = optimizer_of(axes, moments=stored)
        update = jax.jit(optimizer.update)
        state = update({"w": np.ones(4096, np.float32)}, optimizer.init(params), params)[1]
        for _ in range(500):
            _, state = update({"w": np.zeros(4096, np.float32)}, state, params)
        moments[stored] = float(np.asarray(state[0].nu["w"], np.float64).mean())
    assert moments["bfloat16"] == pytest.approx(moments["float32"], rel=0.01)
    assert moments["float32"] == pytest.approx(1e-3 * 0.999**500, rel=1e-3)


def test_training_with_bfloat16_moments_stays_beside_float32():
    """Least squares: the loss after 300 steps within 5 % of the float32 one, both far below the start."""
    rng = np.random.default_rng(0)
    inputs, wanted = rng.normal(size=(256, 16)).astype(np.float32), rng.normal(size=(256, 8)).astype(np.float32)

    def loss(params: Any) -> jax.Array:
        return jnp.square(jnp.tanh(inputs @ params["up"]) @ params["down"] - wanted).mean()

    axes = {"up": ("embed", "mlp"), "down": ("mlp", "embed")}
    start = draw({"up": (16, 32), "down": (32, 8)}, 1)
    for name in ("adamw", "muon"):
        ends = {}
        for stored in ("float32", "bfloat16"):
            optimizer = optimizer_of(axes, name=name, moments=stored, weight_decay=0.0)

            def step(carry: Any, _: None, optimizer: Any = optimizer) -> tuple[Any, None]:
                params, state = carry
                updates, state = optimizer.update(jax.grad(loss)(params), state, params)
                return (optax.apply_updates(params, updates), state), None

            params, _ = jax.jit(lambda c, step=step: jax.lax.scan(step, c, None, 300)[0])(
                (start, optimizer.init(start))
            )
            ends[stored] = float(loss(params))
        assert ends["float32"] < 0.8 * float(loss(start))
        assert ends["bfloat16"] == pytest.approx(ends["float32"], rel=0.05)


def sharded_model(preset: str) -> Any:
    rules = Rules(make_mesh(preset))
    return tiny("llama", Compute(rules=rules), embed_dim=32, num_heads=8, mlp_dim=64)


def steps(model: Any, choice: dict[str, Any], num: int, state: Any = None, *, offload: bool = False) -> Any:
    """The state after further steps by gradients that are a function of the step alone."""
    rules, key = model.compute.rules, jax.random.key(0)
    optimizer = optimizer_of(model.axes, clip_norm=1.0, **choice)
    params = jax.tree.map(lambda s: s.shape, model.shapes)
    if state is None:
        drawn = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), draw(params, 7), model.shapes)
        state = init_state(drawn, optimizer, key, rules, offload=offload)
    shardings = state_shardings(model.shapes, optimizer, rules, offload=offload)
    if offload:
        optimizer = offloaded(optimizer, model.shapes, rules)

    def step(state: Any, grads: Any) -> Any:
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        return state._replace(
            step=state.step + 1, params=optax.apply_updates(state.params, updates), opt_state=opt_state
        )

    compiled = jax.jit(step, out_shardings=shardings, donate_argnums=0)
    for _ in range(num):
        state = compiled(state, draw(params, int(state.step)))
    return state


@choices
@pytest.mark.parametrize("preset", ["fsdp", "fsdp_tp"])
def test_split_over_devices_the_update_is_the_same(choice, preset, monkeypatch):
    monkeypatch.setattr(FACTORED_FROM, 8)
    whole = steps(sharded_model("ddp"), CHOICES[choice], 3)
    split = steps(sharded_model(preset), CHOICES[choice], 3)
    # Sums in another order may round a bfloat16 moment to the other neighbour, 1 part in 128 of a step of 0.01.
    most, mean = (3e-4, 1e-6) if choice.endswith("bfloat16") else (2e-5, 1e-6)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(split.params), strict=True):
        difference = np.abs(np.asarray(a) - np.asarray(b))
        assert difference.max() < most and difference.mean() < mean


@choices
def test_every_moment_is_split_as_its_parameter(choice, monkeypatch):
    monkeypatch.setattr(FACTORED_FROM, 8)
    model = sharded_model("fsdp_tp")
    optimizer = optimizer_of(model.axes, **CHOICES[choice])
    shardings = state_shardings(model.shapes, optimizer, model.compute.rules)
    states = jax.tree_util.tree_leaves_with_path(jax.eval_shape(optimizer.init, model.shapes))
    params = flatten(model.shapes)
    seen = set()
    for (path, leaf), sharding in zip(states, jax.tree.leaves(shardings.opt_state), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        owner = next((param for param in params if name.endswith(param)), None)
        if owner is None:
            assert leaf.ndim == 0 or name.endswith("ns_coeffs")
            assert sharding.spec == P()
            continue
        seen.add(owner)
        spec = [*params[owner].sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
        kept = [part for part, size, full in zip(spec, leaf.shape, params[owner].shape, strict=True) if size == full]
        assert [p for p in sharding.spec if p] == [p for p in kept if p], name
    assert seen == set(params)


def test_factored_moments_keep_the_split_of_what_is_left(monkeypatch):
    monkeypatch.setattr(FACTORED_FROM, 8)
    model = sharded_model("fsdp_tp")
    optimizer = optimizer_of(model.axes, name="adafactor")
    state = state_shardings(model.shapes, optimizer, model.compute.rules).opt_state[0]
    rows, columns = (flatten(tree)["trunk/layers/q"].spec for tree in (state.rows, state.columns))
    assert rows == P(None, "fsdp", None, None) and columns == P(None, None, "tensor", None)


@choices
def test_a_restored_state_goes_on_bit_for_bit(choice, tmp_path, monkeypatch):
    """With the state in the devices' memory, and in the host's."""
    monkeypatch.setattr(FACTORED_FROM, 8)
    keys, model = CHOICES[choice], sharded_model("fsdp")
    undisturbed = steps(model, keys, 4)
    for offload in (False, True):
        state = steps(model, keys, 2, offload=offload)
        with Checkpointer(tmp_path / str(offload), keep=1, metric=None) as checkpoints:
            checkpoints.save(2, state, {}, wait=True)
            optimizer = optimizer_of(model.axes, clip_norm=1.0, **keys)
            rules = model.compute.rules
            wanted = abstract_state(model.shapes, optimizer, jax.random.key(0), rules, offload=offload)
            _, state, _ = checkpoints.restore(wanted)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1}
        assert kinds == {HOST_MEMORY if offload else "device"}
        assert tree_digest(steps(model, keys, 2, state, offload=offload)) == tree_digest(undisturbed)


def test_offload_needs_devices_with_host_memory(monkeypatch):
    model = sharded_model("ddp")
    monkeypatch.setattr("jaxlm.state.HOST_MEMORY", "moon_dust")
    with pytest.raises(UserError, match=r"optimizer.offload: cpu devices have no moon_dust memory \(they have device,"):
        offloaded(optimizer_of(model.axes), model.shapes, model.compute.rules)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["optimizer.name=adafactor", "optimizer.b2=0.99"], "b2: adafactor has none; leave it out"),
        (["optimizer.name=adafactor", "optimizer.moments=bfloat16"], "moments: adafactor has none"),
        (["optimizer.momentum=0.9"], "momentum: adamw has none"),
        (["optimizer.name=sgd"], "optimizer.name"),
        (["optimizer.moments=float16"], "optimizer.moments"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(tmp_path, capsys, keys, message):
    assert run("finetune", "--config", write_config(tmp_path), *keys) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("choice", [pytest.param("adafactor", marks=pytest.mark.slow), "muon-bfloat16"])
def test_a_run_by_another_rule_learns(tmp_path, choice):
    rate = {"adafactor": 0.05, "muon-bfloat16": 5e-3}[choice]
    config = write_config(
        tmp_path, optimizer={"learning_rate": rate, "offload": True, **CHOICES[choice]},
        train={"batch_size": 16, "epochs": 8, "accumulation": 2}, mesh={"preset": "fsdp"},
    )  # fmt: skip
    assert run("finetune", "--config", config) == 0
    assert json.loads((tmp_path / "runs/tiny/summary.json").read_text())["scores"]["validation"]["roc_auc"] > 0.9


# In a process of its own, as in test_tpu_aot.py: what the TPU compiler says of an update whose state lies on the host.
OFFLOAD = """
import math, jax, jax.numpy as jnp, optax
from jax.experimental import topologies
from jaxlm.config import OptimizerConfig
from jaxlm.layers import Compute
from jaxlm.models import FAMILIES, Model
from jaxlm.optim import make_optimizer
from jaxlm.sharding import Rules, make_mesh
from jaxlm.state import abstract_state, offloaded, state_shardings

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
rules = Rules(make_mesh("fsdp", devices=devices))
record = FAMILIES["bert"]
model = Model(record, record.presets["small"], "classification", 3, Compute(rules=rules))
optimizer = make_optimizer(OptimizerConfig(), 10, model.axes)

def update(state, grads):
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    return state._replace(params=optax.apply_updates(state.params, updates), opt_state=opt_state)

for offload in (False, True):
    state = abstract_state(model.shapes, optimizer, jax.random.key(0), rules, offload=offload)
    out = state_shardings(model.shapes, optimizer, rules, offload=offload)
    if offload:
        optimizer = offloaded(optimizer, model.shapes, rules)
    memory = jax.jit(update, donate_argnums=0, out_shardings=out).lower(state, model.shapes).compile().memory_analysis()
    print("BYTES", memory.argument_size_in_bytes, memory.host_argument_size_in_bytes, memory.host_output_size_in_bytes)
"""


@pytest.mark.tpu_aot
def test_an_offloaded_state_leaves_the_chip():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"
    done = subprocess.run([sys.executable, "-c", OFFLOAD], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (plain, *none), (rest, *host) = (map(int, line.split()[1:]) for line in done.stdout.splitlines() if "BYTES" in line)
    assert none == [0, 0] and host[0] == host[1] > 0
    assert plain - rest == pytest.approx(host[0], rel=0.02)
    assert host[0] == pytest.approx(plain / 2, rel=0.05)  # of parameters, gradients and two moments
