"""Every mesh preset computes what one device computes, and its devices send each other what it is known for.

The train steps of an encoder, a decoder and an encoder-decoder are compiled once for all tests here
(`helpers/mesh_steps.py`): loss and gradients come from running them, collectives from the compiled programs' text.
(Evaluation: test_mesh_metrics.py.)
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
from helpers.mesh_steps import FAMILIES_HERE, LENGTH, MESHES, ROWS, WIDER, model_of, rules_of, step_of
from helpers.paths import GOLDEN

from jaxlm.cost.hlo import Collective
from jaxlm.models.base import flatten

families = pytest.mark.parametrize("family", FAMILIES_HERE)


def on(*meshes: str) -> pytest.MarkDecorator:
    """(family, mesh): the decoder on all meshes, the others on those that split most; the rest is slow."""
    return pytest.mark.parametrize(
        ("family", "mesh"),
        [
            pytest.param(
                family, mesh, marks=() if family == "llama" or mesh in ("fsdp_tp", "context") else pytest.mark.slow
            )
            for family in FAMILIES_HERE
            for mesh in meshes
        ],
    )


def assert_same_step(family: str, mesh: str, chunk: int | None = None) -> None:
    expected, actual = step_of(family, None), step_of(family, mesh, chunk)
    np.testing.assert_allclose(actual.loss, expected.loss, rtol=1e-5)
    assert actual.grads.keys() == expected.grads.keys()
    for name, grad in expected.grads.items():
        scale = max(1.0, float(np.abs(grad).max()))
        np.testing.assert_allclose(actual.grads[name], grad, rtol=0, atol=1e-5 * scale, err_msg=name)
        # A gradient that is 0 would be equal whatever the mesh; a softmax does not see what is added to all its keys,
        # and BART's bias of the logits learns nothing.
        assert np.abs(grad).max() > 1e-6 or name.endswith(("k_bias", "logits_bias")), name


@on(*MESHES)
def test_loss_and_gradients_are_those_of_one_device(family, mesh):
    assert_same_step(family, mesh)


@pytest.mark.parametrize("mesh", [pytest.param(m, marks=() if m == "context" else pytest.mark.slow) for m in MESHES])
@pytest.mark.parametrize(
    "family",
    [*(pytest.param(f, marks=pytest.mark.slow) for f in ("albert", "bart", "deberta-v2", "mpnet")), "modernbert"],
)
def test_networks_of_their_own_on_every_mesh(family, mesh):
    assert_same_step(family, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh != "context"])
def test_recurrent_encoder_decoders_on_every_mesh(mesh):
    assert_same_step("lstm_seq2seq", mesh)


@pytest.mark.parametrize(("family", "mesh"), [("llama", "context"), ("llama", "fsdp_tp")])
def test_a_chunked_loss_is_that_of_one_device(family, mesh):
    assert_same_step(family, mesh, chunk=8)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", WIDER)
@families
def test_wider_meshes(family, mesh):
    assert_same_step(family, mesh)
    if family != "bert":
        assert_same_step(family, mesh, chunk=8)


@functools.cache
def listing(family: str) -> str:
    """The PartitionSpec of each parameter, by mesh; an axis that is whole is left out."""
    names = (*MESHES, "context_fsdp_tp")
    models = {name: model_of(family, name) for name in names}
    lines = [f"# {family}: mesh axes of each dimension, `-` where it is whole"]
    lines += [f"# {name}: " + ", ".join(f"{a} {n}" for a, n in rules_of(name).mesh.shape.items()) for name in names]
    shapes = {name: flatten(model.shapes) for name, model in models.items()}
    for parameter, axes in flatten(models["ddp"].axes).items():
        lines += ["", f"{parameter}  ({', '.join(axes)})"]
        for name in names:
            spec = shapes[name][parameter].sharding.spec
            parts = ["-" if p is None else p if isinstance(p, str) else "+".join(p) for p in spec]
            lines.append(f"  {name:16}{'  '.join(parts)}")
    return "\n".join(lines) + "\n"


@families
def test_layouts_are_as_listed(family):
    golden = GOLDEN / f"{family}_layout.txt"
    assert listing(family) == golden.read_text(encoding="utf-8")


# Collectives. On a CPU the compiler leaves the sum of gradients that are split (ZeRO-3) an all-reduce and a slice,
# which the compilers for TPUs and GPUs make a reduce-scatter (tests/cost/test_tpu_aot.py).

KINDS = {
    "ddp": {"all-reduce"},
    "fsdp": {"all-gather", "all-reduce"},
    "fsdp_tp": {"all-gather", "all-reduce"},
    "tp": {"all-reduce"},
    "hybrid": {"all-gather", "all-reduce"},
    "context": {"all-gather", "all-reduce"},
}


def sent(family: str, mesh: str, kind: str) -> list[Collective]:
    return [c for c in step_of(family, mesh).collectives if c.kind == kind]


def total(found: list[Collective]) -> int:
    return sum(c.bytes * c.times for c in found)


def parameter_bytes(family: str) -> int:
    return 4 * sum(math.prod(struct.shape) for struct in flatten(model_of(family, None).shapes).values())


def rows_in(collective: Collective) -> bool:
    """Whether it holds anything of the batch's shape [rows, ..., length, ...]."""
    return any(shape[:1] in {(n,) for n in (1, 2, 4, ROWS)} and LENGTH in shape[1:] for _, shape in collective.shapes)


@on(*MESHES)
def test_kinds_of_collectives(family, mesh):
    expected = KINDS[mesh]
    # The classifier's small matrices, whose input every device of `tensor` or `context` has whole, are moved, too.
    small = [c for c in step_of(family, mesh).collectives if c.kind in ("all-to-all", "collective-permute")]
    if family == "bert":
        assert all("/head/" in c.op_name for c in small) and total(small) < 4096
        expected = expected | {c.kind for c in small}
    if (family, mesh) == ("t5", "context"):
        # Each device makes its queries' rows of the relative positions, and hands its neighbour the rest of one.
        expected = expected | {"collective-permute"}
        assert total(sent(family, mesh, "collective-permute")) < 2048
    assert {c.kind for c in step_of(family, mesh).collectives} == expected
    assert all(c.group_size for c in step_of(family, mesh).collectives)


@on("ddp")
def test_ddp_adds_every_gradient_up_once(family, mesh):
    found = total(sent(family, mesh, "all-reduce"))
    # T5 besides: relative positions [N, T, T] of 3 + 2 layers, and the token table's for each of its three uses.
    extra = 4 * (5 * 4 * LENGTH * LENGTH + 2 * 64 * 16) if family == "t5" else 0
    assert parameter_bytes(family) <= found < 1.05 * parameter_bytes(family) + 64 + extra


@on("fsdp", "fsdp_tp", "hybrid")
def test_fsdp_gathers_weights_layer_by_layer_and_no_activations(family, mesh):
    gathered = sent(family, mesh, "all-gather")
    assert not [c for c in gathered if rows_in(c)]
    looped = [c for c in gathered if c.looped]
    assert looped and max(c.bytes for c in looped) <= 4 * 16 * 32  # the MLP's matrix of one layer, the largest there is
    if mesh == "hybrid":
        assert {c.group_size for c in gathered} == {4}  # within a slice
    if mesh == "fsdp":
        # Forward and backward at most; but for the table, whose gradient needs none.
        assert 0.9 * parameter_bytes(family) < total(gathered) < 2 * parameter_bytes(family)


@on("tp")
def test_tensor_parallelism_adds_up_activations(family, mesh):
    square = (LENGTH, LENGTH)  # gradients of relative positions, over the rows
    added = [c for c in sent(family, mesh, "all-reduce") if rows_in(c) and c.shapes[0][1][-2:] != square]
    assert {c.group_size for c in added} == {2}
    # Rows [R / 4, T, D] of attention and of the MLP in each layer, and no heads, no MLP columns, no logits.
    assert all(shape[-1] <= 16 or LENGTH in shape[-1:] for c in added for _, shape in c.shapes)


@on("context")
def test_context_gathers_keys_and_values_alone(family, mesh):
    """Per layer, [R / 2, T, K, H]; and the segment ids, int32."""
    gathered = [c for c in sent(family, mesh, "all-gather") if rows_in(c)]
    kv_heads, head_dim = {"bert": (4, 4), "llama": (2, 4), "t5": (4, 4)}[family]
    allowed = {(ROWS // 2, LENGTH, kv_heads, head_dim), (ROWS // 2, kv_heads, LENGTH, head_dim)}
    allowed |= {(ROWS // 2, kv_heads, head_dim, LENGTH)}
    floats = {shape for c in gathered for dtype, shape in c.shapes if dtype == "f32"}
    assert floats and floats <= allowed
    assert {dtype for c in gathered for dtype, _ in c.shapes} <= {"f32", "s32"}
