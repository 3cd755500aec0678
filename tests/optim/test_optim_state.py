"""Optimizer states: their bytes and precision, split over devices, restored, and in the host's memory."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.saved_states import tree_digest
from helpers.update_rules import AXES, CHOICES, FACTORED_FROM, SHAPES, choices, draw, optimizer_of
from jax.sharding import PartitionSpec as P

from jaxlm.errors import UserError
from jaxlm.optim.moments import round_stochastic
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.training.checkpoint import Checkpointer
from jaxlm.training.state import HOST_MEMORY, TrainState, abstract_state, init_state, offloaded, state_shardings

SPLIT_SHAPES = {"q": (2, 16, 4, 4), "q_bias": (2, 4, 4), "o": (2, 4, 4, 16), "fused": (2, 16, 3, 4, 4),
                "tokens": (32, 16), "norm_scale": (16,), "up": (2, 16, 32)}  # fmt: skip
SPLIT_AXES = {name: AXES.get(name, ("layers", "embed", "mlp")) for name in SPLIT_SHAPES}
"""Sizes that the mesh presets divide."""


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
        optimizer = optimizer_of(axes, moment_dtype=stored)
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
            optimizer = optimizer_of(axes, name=name, moment_dtype=stored, weight_decay=0.0)

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


class Setting(NamedTuple):
    """A choice of optimizer for parameters of every form, split as a mesh preset says, and its jitted update."""

    optimizer: optax.GradientTransformation
    shapes: dict[str, jax.ShapeDtypeStruct]
    rules: Rules
    update: Any
    offload: bool

    def start(self) -> TrainState:
        drawn = draw({name: struct.shape for name, struct in self.shapes.items()}, 7)
        params = {name: jax.device_put(value, self.shapes[name].sharding) for name, value in drawn.items()}
        return init_state(params, self.optimizer, jax.random.key(0), self.rules, offload=self.offload)

    def advance(self, state: TrainState, num: int) -> TrainState:
        """The state after further steps, by gradients that are a function of the step alone."""
        for _ in range(num):
            state = self.update(state, draw({name: x.shape for name, x in self.shapes.items()}, int(state.step)))
        return state


def shapes_of(preset: str) -> tuple[dict[str, jax.ShapeDtypeStruct], Rules]:
    rules = Rules(make_mesh(preset))
    sharding = {name: rules.sharding(SPLIT_AXES[name], shape) for name, shape in SPLIT_SHAPES.items()}
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding[name]) for name, shape in SPLIT_SHAPES.items()
    }, rules


@functools.cache
def setting(preset: str, choice: str, offload: bool = False) -> Setting:
    """One compilation for all tests; they run with Adafactor's sizes lowered (`small_matrices`)."""
    shapes, rules = shapes_of(preset)
    optimizer = optimizer_of(SPLIT_AXES, clip_norm=1.0, **CHOICES[choice])
    shardings = state_shardings(shapes, optimizer, rules, offload=offload)
    used = offloaded(optimizer, shapes, rules) if offload else optimizer

    def update(state: TrainState, grads: Any) -> TrainState:
        updates, opt_state = used.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state)

    jitted = jax.jit(update, out_shardings=shardings, donate_argnums=0)
    return Setting(optimizer, shapes, rules, jitted, offload)


@functools.cache
def third(preset: str, choice: str) -> tuple[dict[str, np.ndarray], str]:
    """The parameters, and the digest of the whole state, after three steps."""
    made = setting(preset, choice)
    state = made.advance(made.start(), 3)
    return jax.device_get(state.params), tree_digest(state)


@pytest.fixture
def small_matrices(monkeypatch):
    monkeypatch.setattr(FACTORED_FROM, 8)


@choices
@pytest.mark.usefixtures("small_matrices")
def test_split_over_devices_the_update_is_the_same(choice):
    whole, _ = third("ddp", choice)
    split, _ = third("fsdp_tp", choice)
    # Sums in another order may round a bfloat16 moment to the other neighbor, 1 part in 128 of a step of 0.01.
    most, mean = (3e-4, 1e-6) if choice.endswith("bfloat16") else (2e-5, 1e-6)
    for name in SPLIT_SHAPES:
        difference = np.abs(whole[name] - split[name])
        assert difference.max() < most and difference.mean() < mean, name


@choices
@pytest.mark.usefixtures("small_matrices")
def test_every_moment_is_split_as_its_parameter(choice):
    made = setting("fsdp_tp", choice)
    shardings = state_shardings(made.shapes, made.optimizer, made.rules)
    states = jax.tree_util.tree_leaves_with_path(jax.eval_shape(made.optimizer.init, made.shapes))
    seen = set()
    for (path, leaf), sharding in zip(states, jax.tree.leaves(shardings.opt_state), strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        owner = name.split("/")[-1]
        if owner not in made.shapes:
            assert leaf.ndim == 0 or owner == "ns_coeffs"
            assert sharding.spec == P()
            continue
        seen.add(owner)
        param = made.shapes[owner]
        spec = [*param.sharding.spec, *[None] * leaf.ndim][: leaf.ndim]
        kept = [part for part, size, full in zip(spec, leaf.shape, param.shape, strict=True) if size == full]
        assert [p for p in sharding.spec if p] == [p for p in kept if p], name
    assert seen == set(made.shapes)
    assert any("fsdp" in str(sharding.spec) for sharding in jax.tree.leaves(shardings.opt_state))
    assert any("tensor" in str(sharding.spec) for sharding in jax.tree.leaves(shardings.opt_state))


@pytest.mark.usefixtures("small_matrices")
def test_factored_moments_keep_the_split_of_what_is_left():
    made = setting("fsdp_tp", "adafactor")
    state = state_shardings(made.shapes, made.optimizer, made.rules).opt_state[1][0]
    assert state.rows["q"].spec == P(None, "fsdp", None, None)
    assert state.columns["q"].spec == P(None, None, "tensor", None)


@pytest.mark.parametrize(
    ("choice", "offload"),
    [*((choice, False) for choice in CHOICES), ("adamw", True), ("adafactor", True), ("muon-bfloat16", True)],
)
@pytest.mark.usefixtures("small_matrices")
def test_a_restored_state_goes_on_bit_for_bit(choice, offload, tmp_path):
    """With the state in the devices' memory, and in the host's."""
    made = setting("fsdp_tp", choice, offload)
    with Checkpointer(tmp_path, keep=1, metric=None) as checkpoints:
        checkpoints.save(1, made.advance(made.start(), 1), {}, wait=True)
        wanted = abstract_state(made.shapes, made.optimizer, jax.random.key(0), made.rules, offload=offload)
        _, state, _ = checkpoints.restore(wanted)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim > 1}
    assert kinds == {HOST_MEMORY if offload else "device"}
    assert tree_digest(made.advance(state, 2)) == third("fsdp_tp", choice)[1]


def test_offload_needs_devices_with_host_memory(monkeypatch):
    shapes, rules = shapes_of("ddp")
    monkeypatch.setattr("jaxlm.training.state.HOST_MEMORY", "moon_dust")
    with pytest.raises(UserError, match=r"optimizer.offload: cpu devices have no moon_dust memory \(they have device,"):
        offloaded(optimizer_of(SPLIT_AXES), shapes, rules)


# In a process of its own, as in test_tpu_aot.py: what the TPU compiler says of an update whose state lies on the host.
OFFLOAD = """
import math, jax, jax.numpy as jnp, optax
from jax.experimental import topologies
from jaxlm.optim.config import OptimizerConfig
from jaxlm.nn.layers import ComputeConfig
from jaxlm.models import FAMILIES, Model
from jaxlm.optim import make_optimizer
from jaxlm.parallel.sharding import Rules
from jaxlm.parallel.mesh import make_mesh
from jaxlm.training.state import abstract_state, offloaded, state_shardings

devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
rules = Rules(make_mesh("fsdp", devices=devices))
record = FAMILIES["bert"]
model = Model(record, record.presets["small"], "classification", 3, ComputeConfig(rules=rules))
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
