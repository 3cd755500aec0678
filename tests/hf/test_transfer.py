"""Checkpoints read and written in parts: what each device needs of each tensor, in files of bounded size."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, write_checkpoint
from helpers.tiny_models import tiny, weights
from safetensors import safe_open
from safetensors.numpy import load_file

from jaxlm.errors import UserError
from jaxlm.hf import transfer
from jaxlm.hf.checkpoint import HFCheckpoint, export_model, load_params
from jaxlm.hf.shards import write_tensors
from jaxlm.hf.tensors import Tensors
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten
from jaxlm.models.weight_map import Rule, rules_for
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules

HEADS = {"llama": "causal_lm", "gpt2": "causal_lm", "bert": "classification", "t5": "seq2seq_lm"}


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(transfer, "_PIECE_BYTES", 512)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_part_of_a_parameter_is_made_from_a_part_of_its_tensor(family):
    """Of every row of every family, whichever dimensions are cut."""
    shapes = {name: struct.shape for name, struct in flatten(tiny(family).shapes).items()}
    rng = np.random.default_rng(0)
    for row in rules_for(tiny(family).weight_map, shapes):
        shape = shapes[row.param]
        inner = shape[1:] if row.stacked else shape
        tensor = rng.normal(size=row.hf_shape(shape))
        whole = row.to_param(tensor, shape)
        for halves in itertools.product([None, 0, 1], repeat=len(inner)):
            cuts = [{None: (0, n), 0: (0, n // 2), 1: (n // 2, n)} for n in inner]
            bounds = [cut[half] for cut, half in zip(cuts, halves, strict=True)]
            slices, convert = row.part(shape, bounds)
            part = convert(tensor[slices])
            np.testing.assert_array_equal(part, whole[tuple(slice(*b) for b in bounds)], err_msg=row.param)


def test_only_what_is_needed_is_read_where_it_lies_in_one_piece():
    rule, shape = Rule("q", "layer.{i}.q", "(n h) d -> d n h"), (7, 8, 4, 3)
    assert rule.part(shape, ((2, 4), (1, 3), (0, 3)))[0] == (slice(3, 9), slice(2, 4))
    assert rule.part(shape, ((0, 8), (0, 4), (1, 2)))[0] == (slice(0, 12), slice(0, 8))  # a piece of every head
    fused = Rule("qkv", "layer.{i}.qkv", "d (three n h) -> d three n h")
    assert fused.part((7, 8, 3, 4, 2), ((0, 4), (0, 3), (0, 2), (0, 2)))[0] == (slice(0, 4), slice(0, 24))


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        ("llama", "ddp"),
        ("llama", "fsdp"),
        ("llama", "fsdp_tp"),
        ("gpt2", "fsdp_tp"),
        ("bert", "fsdp"),
        ("t5", "fsdp_tp"),
    ],
)
def test_a_sharded_import_is_the_plain_one(tmp_path, monkeypatch, family, preset):
    model = tiny(family, embed_dim=32, num_heads=8, mlp_dim=64)
    model = Model(model.family, model.config, HEADS[family], 2)
    config = {"model_type": family, "architectures": [model.family.heads[model.head].architecture]}
    write_checkpoint(tmp_path, config | model.family.to_hf(model.config), model.head)
    checkpoint = HFCheckpoint(tmp_path)
    plain = flatten(load_params(checkpoint, model, jax.random.key(0)).params)
    monkeypatch.setattr(transfer, "_PIECE_BYTES", 512)
    read, most = [0], [0]
    original = Tensors.read

    def counted(self: Tensors, key: str, part: Any) -> np.ndarray:
        value = original(self, key, part)
        read[0] += value.nbytes
        most[0] = max(most[0], value.nbytes)
        return value

    monkeypatch.setattr(Tensors, "read", counted)
    split = Model(model.family, model.config, model.head, 2, ComputeConfig(rules=Rules(make_mesh(preset))))
    params = flatten(load_params(checkpoint, split, jax.random.key(0)).params)
    structs = flatten(split.shapes)
    for name, value in plain.items():
        assert params[name].sharding == structs[name].sharding and params[name].dtype == np.float32
        np.testing.assert_array_equal(params[name], value, err_msg=name)
    # Every number once, though eight devices share them; T5's relative positions and GPT-2's fused maps are cut inside.
    total = 4 * sum(value.size for value in plain.values())
    assert read[0] <= total * (2 if preset == "fsdp_tp" and family == "gpt2" else 1)


def test_large_parts_are_put_together_on_the_device(small_pieces):
    value = np.random.default_rng(0).normal(size=(10, 6, 16)).astype(np.float32)
    mesh = make_mesh("fsdp", data=2, fsdp=4)
    for sharding in (
        None,
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, None, "fsdp")),
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")),
    ):
        asked = []

        def read(index: Any, asked: list = asked) -> np.ndarray:
            asked.append(index)
            return value[tuple(slice(*bounds) for bounds in index)]

        placed = transfer.place(jax.ShapeDtypeStruct(value.shape, np.float32, sharding=sharding), read)
        np.testing.assert_array_equal(placed, value)
        assert len(set(asked)) == len(asked) and sharding in (None, placed.sharding)
        sizes = [4 * int(np.prod([stop - start for start, stop in index])) for index in asked]
        assert max(sizes) <= 512 and sum(sizes) == value.nbytes


def test_scalars_and_empty_dimensions_have_one_part():
    for shape in ((), (0, 3)):
        placed = transfer.place(jax.ShapeDtypeStruct(shape, np.float32), lambda index, s=shape: np.ones(s, np.float32))
        assert placed.shape == shape


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "config.json")


def test_a_large_model_is_exported_in_shards_and_read_back(tmp_path, small_pieces):
    model = tiny("llama", ComputeConfig(rules=Rules(make_mesh("fsdp"))), embed_dim=32)
    params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), weights(model), model.shapes)
    export_model(tmp_path / "whole", model, params)
    assert files(tmp_path / "whole") == ["model.safetensors"]
    export_model(tmp_path / "parts", model, params, shard_bytes=20_000)
    *shards, index = files(tmp_path / "parts")
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 2 and index == "model.safetensors.index.json"
    written = json.loads((tmp_path / "parts" / index).read_text())
    held: dict[str, np.ndarray] = {}
    for name in shards:
        path = tmp_path / "parts" / name
        assert path.stat().st_size < 22_000
        tensors = load_file(path)
        assert all(written["weight_map"][key] == name for key in tensors)
        with safe_open(path, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
        held |= tensors
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert held.keys() == whole.keys() == written["weight_map"].keys()
    assert written["metadata"]["total_size"] == sum(value.nbytes for value in whole.values())
    for key, value in whole.items():
        np.testing.assert_array_equal(held[key], value, err_msg=key)
    back = load_params(HFCheckpoint(tmp_path / "parts"), tiny("llama", embed_dim=32), jax.random.key(0))
    assert not back.initialized
    jax.tree.map(np.testing.assert_array_equal, back.params, weights(model))
    # An export over another leaves nothing of it that a reader could take for its own.
    export_model(tmp_path / "parts", model, params, shard_bytes=40_000)
    fewer = files(tmp_path / "parts")
    assert 2 < len(fewer) < len(shards) + 1
    export_model(tmp_path / "parts", model, params)
    assert files(tmp_path / "parts") == ["model.safetensors"]
    assert_same_tensors(tmp_path / "whole", tmp_path / "parts")


SIZES = {"a": 400, "b": 400, "c": 400, "large": 1200, "d": 100, "e": 900, "f": 100}
FILES = [["a", "b"], ["c"], ["large"], ["d", "e"], ["f"]]
"""Of 1000 bytes at most, in the order in which tensors come; a larger tensor has a file of its own."""


def test_an_export_holds_the_tensors_of_one_file_at_a_time(tmp_path):
    made: dict[str, weakref.ref] = {}
    together = []

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for key, size in SIZES.items():
            value = np.full(size // 4, size, np.float32)
            made[key] = weakref.ref(value)
            together.append([name for name, tensor in made.items() if tensor() is not None])
            yield key, value
            del value

    write_tensors(tmp_path, SIZES, tensors(), 1000)
    assert together == [names[: i + 1] for names in FILES for i in range(len(names))]
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    names = [f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)]
    assert weight_map == {key: name for name, keys in zip(names, FILES, strict=True) for key in keys}


def test_tensors_in_another_order_than_their_sizes_are_refused_and_replace_nothing(tmp_path):
    """They would lie in other files than the index says."""
    write_tensors(tmp_path, SIZES, ((key, np.zeros(size // 4, np.float32)) for key, size in SIZES.items()), 1000)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    swapped = dict(sorted(SIZES.items(), key=lambda item: item[1]))
    with pytest.raises(AssertionError):
        write_tensors(tmp_path, SIZES, ((key, np.ones(size // 4, np.float32)) for key, size in swapped.items()), 1000)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_an_export_fetches_large_parameters_layer_by_layer(tmp_path, monkeypatch, small_pieces):
    model = tiny("llama", ComputeConfig(rules=Rules(make_mesh("fsdp"))), embed_dim=32)
    params = jax.tree.map(lambda x, s: jax.device_put(x, s.sharding), weights(model), model.shapes)
    fetched = []
    original = transfer.on_host

    def counted(array: Any) -> np.ndarray:
        fetched.append(array.nbytes)
        return original(array)

    monkeypatch.setattr(transfer, "on_host", counted)
    export_model(tmp_path, model, params)
    layer = 4 * 32 * 32  # one layer's MLP matrix; of all layers together a stacked parameter has three times as much
    assert max(fetched) == layer and max(value.nbytes for value in flatten(params).values()) == 3 * layer


def test_a_damaged_file_is_named(tmp_path):
    model = tiny("llama")
    export_model(tmp_path, model, weights(model))
    data = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(UserError, match=r"model\.safetensors: damaged or truncated"):
        load_checkpoint(tmp_path, "classification", 3)


@pytest.mark.parity
def test_transformers_reads_the_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = tiny("llama")
    model = Model(model.family, model.config, "causal_lm", 0)
    params = weights(model)
    export_model(tmp_path, model, params, shard_bytes=5_000)
    _, notes = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not (notes["missing_keys"] or notes["unexpected_keys"] or notes["mismatched_keys"])
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2


# Imports a checkpoint onto eight devices and lets go of each array as soon as it is placed. On a CPU a device's memory
# is the process's own, so what is measured for each parameter, from its first read on, holds the parameter itself as
# well: a host with accelerators needs less.
IMPORT = """
import json, os, sys
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
import jax
from jaxlm.hf import checkpoint
from jaxlm.nn.layers import ComputeConfig
from jaxlm.hf.tensors import Tensors
from jaxlm.models import Model
from jaxlm.parallel.sharding import Rules
from jaxlm.parallel.mesh import make_mesh

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

def reset():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")

opened = checkpoint.HFCheckpoint(checkpoint.Path(sys.argv[1]))
compute = ComputeConfig(rules=Rules(make_mesh("fsdp")))
model = Model(opened.family, opened.model_config, "causal_lm", 0, compute)
place, peaks = checkpoint.place, []

def measured(struct, read):
    reset()
    before = status("VmRSS:")
    array = jax.block_until_ready(place(struct, read))
    peaks.append(status("VmHWM:") - before)
    if sys.argv[2] == "drop":
        array.delete()
    return array

checkpoint.place = measured
start = status("VmRSS:")
params = checkpoint.load_params(opened, model, jax.random.key(0)).params
held = sum(4 * struct.size for struct in jax.tree.leaves(model.shapes))
print(json.dumps({"peak": max(peaks), "kept": status("VmRSS:") - start, "parameters": held}))
"""


def write_synthetic(directory: Path, num_layers: int = 34, shard_bytes: int = 1 << 29) -> int:
    """A float32 Llama of 2 GB in four shards, written shard by shard; returns the bytes of the largest."""
    record = FAMILIES["llama"]
    config = record.config(num_layers=num_layers, embed_dim=1024, num_heads=16, mlp_dim=2816)
    model = Model(record, config, "causal_lm", 0)
    # Never whole in memory: an array without strides.
    params = jax.tree.map(lambda s: np.broadcast_to(np.float32(0.5), s.shape), model.shapes)
    export_model(directory, model, params, shard_bytes=shard_bytes)
    return max(path.stat().st_size for path in directory.glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads memory from Linux's /proc")
def test_peak_memory_of_an_import_is_bounded_by_a_shard(tmp_path):
    largest = write_synthetic(tmp_path)
    total = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    assert total > 2e9 and largest < total / 3
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, str(tmp_path), "drop"],
        env={**os.environ, "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false"}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(found, largest)
    assert found["parameters"] > 2e9
    assert found["peak"] < 1.3 * largest
    assert found["kept"] < largest  # what was placed is gone: the compiler, and freed memory that is held
