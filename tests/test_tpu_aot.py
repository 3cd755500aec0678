"""The train step goes through the real TPU compiler, on this CPU: marker `tpu_aot`."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

# In a process of its own: libtpu takes a lock, and the other tests' eight CPU devices and strict flags stay out of it.
PROGRAM = """
import sys
import jax, jax.numpy as jnp, optax
from jax.experimental import topologies
from jaxlm.layers import Compute
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import BATCH_INPUTS, override
from jaxlm.objectives.classification import multiclass_loss
from jaxlm.sharding import batch_shardings, make_mesh, make_rules
from jaxlm.state import abstract_state, state_shardings
from jaxlm.step import make_train_step

family, preset = sys.argv[1:]
devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
rules = make_rules(preset, make_mesh(preset, devices=devices))
record = FAMILIES[family]
sizes = override(next(iter(record.presets.values())), {"num_layers": 2})
model = Model(record, sizes, "classification", 3, Compute(jnp.dtype(jnp.bfloat16), remat="full", rules=rules))
optimizer = optax.adamw(1e-4)
key = jax.random.key(0)
state = abstract_state(model.shapes, optimizer, key, rules)
shapes = {name: jax.ShapeDtypeStruct((1, 16, 128), jnp.int32) for name in BATCH_INPUTS}
shapes |= {name: jax.ShapeDtypeStruct((1, 16, 8), jnp.int32) for name in ("slot_positions", "labels")}
shapes |= {"weights": jax.ShapeDtypeStruct((1, 16, 8), jnp.float32)}
shardings = batch_shardings(shapes, rules, leading=1)
batch = {k: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=shardings[k]) for k, s in shapes.items()}
step = make_train_step(model.apply, multiclass_loss(), optimizer, optax.constant_schedule(1e-4))
out = (state_shardings(model.shapes, optimizer, rules), None)
compiled = jax.jit(step, donate_argnums=0, out_shardings=out).lower(state, batch).compile()
memory = compiled.memory_analysis()
print("BYTES", memory.argument_size_in_bytes, memory.temp_size_in_bytes)
print(compiled.as_text())
"""

FAMILIES = ("roberta", "distilbert", "electra", "gpt2", "llama")  # XLM-R has RoBERTa's modules, BERT stands below


def compile_step(family: str, preset: str) -> tuple[int, set[str]]:
    """Bytes of arguments on one chip, and the kinds of collectives in the compiled step."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"  # nothing here holds a TPU; another run may compile, too
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, family, preset], env=environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    kinds = set(re.findall(rf" ({names})[-\w]*\(", done.stdout))
    return int(re.search(r"BYTES (\d+)", done.stdout).group(1)), kinds


@pytest.mark.tpu_aot
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_compiles_for_v5e(family):
    _, kinds = compile_step(family, "ddp")
    assert kinds == {"all-reduce"}


@pytest.mark.tpu_aot
def test_fsdp_splits_parameters_and_optimizer_over_the_chips():
    whole, kinds = compile_step("bert", "ddp")
    assert kinds == {"all-reduce"}
    split, kinds = compile_step("bert", "fsdp")
    assert "all-gather" in kinds
    assert split < 0.2 * whole  # an eighth, plus the norms and biases that stay whole


@pytest.mark.tpu_aot
def test_tensor_parallel_step_compiles():
    _, kinds = compile_step("bert", "fsdp_tp")
    assert "all-reduce" in kinds
