"""Meshes, rules, and where the parameters and batches of a model land on eight devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from helpers.paths import GOLDEN
from helpers.tiny_models import tiny
from jax.sharding import PartitionSpec as P

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten
from jaxlm.nn.layers import ComputeConfig, param
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import MESH_AXES, Rules, batch_shardings, constrain

GOLDEN = GOLDEN / "bert_base_shards.txt"
PRESETS = ("ddp", "fsdp", "fsdp_tp")


@pytest.mark.parametrize(
    ("preset", "sizes", "expected"),
    [
        ("ddp", {}, (8, 1, 1, 1)),
        ("fsdp", {}, (1, 8, 1, 1)),
        ("fsdp_tp", {}, (1, 4, 1, 2)),
        ("tp", {}, (1, 1, 1, 8)),
        ("tp", {"tensor": 2, "data": -1}, (4, 1, 1, 2)),
        ("context", {}, (1, 1, 8, 1)),
        ("context", {"context": 2, "fsdp": -1}, (1, 4, 2, 1)),
        ("hybrid", {}, (1, 8, 1, 1)),
        ("hybrid", {"slices": 2}, (2, 4, 1, 1)),
        ("hybrid", {"slices": 2, "data": 4, "tensor": 2}, (4, 1, 1, 2)),
        ("fsdp", {"fsdp": 4, "data": 2}, (2, 4, 1, 1)),
        ("fsdp", {"data": -1, "fsdp": 2}, (4, 2, 1, 1)),
        ("fsdp", {"data": -1}, (8, 1, 1, 1)),
        ("fsdp_tp", {"data": 2, "tensor": 2}, (2, 2, 1, 2)),
    ],
)
def test_mesh_sizes(preset, sizes, expected):
    mesh = make_mesh(preset, **sizes)
    assert mesh.axis_names == MESH_AXES
    assert mesh.devices.shape == expected
    assert Rules(mesh).num_batch_shards == expected[0] * expected[1]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3}, "data=3, fsdp=1, context=1, tensor=1 does not fit 8 devices; the sizes must multiply to 8"),
        ({"data": 2, "fsdp": 2}, "data=2, fsdp=2, context=1, tensor=1 does not fit 8 devices"),
        ({"data": -1, "tensor": 3}, "does not fit 8 devices"),
        ({"data": 0}, "expected positive sizes with at most one -1, found data=0"),
        ({"data": -2}, "expected positive sizes with at most one -1, found data=-2"),
        ({"data": -1, "fsdp": -1}, "expected positive sizes with at most one -1"),
        ({"context": 5}, "data=-1, fsdp=1, context=5, tensor=1 does not fit 8 devices"),
        ({"slices": 3}, "data=8 cannot be spread over slices=3; expected a multiple of 3"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(sizes, message):
    with pytest.raises(UserError, match=message):
        make_mesh("ddp", **sizes)


def test_a_mesh_may_use_some_of_the_devices():
    assert make_mesh("fsdp", devices=jax.devices()[:2]).devices.shape == (1, 2, 1, 1)


def test_specs_follow_the_rules():
    rules = Rules()
    assert rules.spec(("embed", "heads", "head_dim")) == P(("fsdp", "context"), "tensor", None)
    assert rules.spec(("batch", "length", None)) == P(("data", "fsdp"), "context", None)
    assert rules.spec(("batch", "embed")) == P(("data", "fsdp"), "context")  # an axis of the mesh is used once
    assert Rules(make_mesh("ddp")).spec(("batch", "embed", "heads")) == P("data", None, None)  # nothing on size 1
    assert Rules(make_mesh("fsdp_tp")).spec(("embed", "heads")) == P("fsdp", "tensor")


def test_a_vocabulary_that_does_not_divide_is_whole():
    rules = Rules(make_mesh("tp", tensor=4, data=-1))
    assert rules.spec(("vocab", "embed"), (30522, 8)) == P(None, None)
    assert rules.spec(("vocab", "embed"), (32000, 8)) == P("tensor", None)
    assert rules.spec(("embed", "heads"), (8, 3)) == P(None, "tensor")  # which param_shardings refuses


def test_a_name_without_a_rule_is_an_error():
    with pytest.raises(ValueError, match="logical axis 'embedding' has no rule; known axes: act_embed"):
        Rules().spec(("vocab", "embedding"))
    with pytest.raises(ValueError, match="no mesh"):
        Rules().sharding(("embed",))


def test_constrain_lays_out_activations_and_checks_rank():
    rules = Rules(make_mesh("fsdp_tp"))
    x = jnp.ones((8, 3, 4))
    y = jax.jit(lambda x: constrain(x * 2.0, ("batch", "length", "act_mlp"), rules))(x)
    assert y.sharding.shard_shape(y.shape) == (2, 3, 2)
    assert constrain(x, ("batch", "length", "act_mlp"), Rules()) is x
    with pytest.raises(ValueError, match="2 logical axes .* for an array of rank 3"):
        constrain(x, ("batch", "length"), Rules())


def test_a_parameter_names_as_many_axes_as_it_has():
    with pytest.raises(ValueError, match=r"parameter q: shape \(2, 3\) and axes \('embed',\) differ in rank"):
        param(nn.Module(), "q", jax.nn.initializers.zeros, (2, 3), ("embed",))


def test_batches_split_their_rows_over_data_and_fsdp():
    rules = Rules(make_mesh("fsdp_tp", data=2, tensor=2))
    batch = {"tokens": np.zeros((8, 6), np.int32), "labels": np.zeros((8, 2, 5), np.float32)}
    placed = jax.device_put(batch, batch_shardings(batch, rules))
    assert placed["tokens"].sharding.shard_shape((8, 6)) == (2, 6)
    assert placed["labels"].sharding.shard_shape((8, 2, 5)) == (2, 2, 5)
    stacked = {name: np.stack([value] * 3) for name, value in batch.items()}
    assert batch_shardings(stacked, rules, leading=1)["tokens"].shard_shape((3, 8, 6)) == (3, 2, 6)


def test_an_indivisible_dimension_names_parameter_axis_and_mesh():
    rules = Rules(make_mesh("fsdp_tp", fsdp=2, tensor=4))
    model = tiny("bert", ComputeConfig(rules=rules), embed_dim=12, num_heads=2)
    message = (
        "parameter trunk/stack/layers/k: axis 'heads' of size 2 cannot be split 4 ways over mesh axis tensor; "
        "choose a mesh size that divides it"
    )
    with pytest.raises(UserError, match=message):
        _ = model.shapes


def shard_listing() -> str:
    """What one of eight devices holds of each parameter of BERT-base, by preset."""
    lines = [f"{'parameter':40}{'whole':>20}" + "".join(f"{preset:>20}" for preset in PRESETS)]
    models = [
        Model(FAMILIES["bert"], FAMILIES["bert"].presets["base"], "classification", 2, ComputeConfig(rules=rules))
        for rules in (Rules(make_mesh(preset)) for preset in PRESETS)
    ]
    shapes = [flatten(model.shapes) for model in models]
    written = lambda shape: "x".join(map(str, shape))  # noqa: E731
    for name, struct in shapes[0].items():
        local = [written(of[name].sharding.shard_shape(struct.shape)) for of in shapes]
        lines.append(f"{name:40}{written(struct.shape):>20}" + "".join(f"{shape:>20}" for shape in local))
    return "\n".join(lines) + "\n"


def test_shards_of_bert_base_are_as_listed():
    assert shard_listing() == GOLDEN.read_text(encoding="utf-8")


def test_an_initialized_model_is_born_sharded():
    rules = Rules(make_mesh("fsdp_tp"))
    model = tiny("electra", ComputeConfig(rules=rules))
    shardings = jax.tree.map(lambda struct: struct.sharding, model.shapes)
    params = flatten(jax.jit(model.init, out_shardings=shardings)(jax.random.key(0, impl="rbg")))
    q, project = params["trunk/stack/layers/q"], params["trunk/project"]
    assert {shard.data.shape for shard in q.addressable_shards} == {(3, 4, 2, 4)}
    assert {shard.data.shape for shard in project.addressable_shards} == {(8, 4)}
