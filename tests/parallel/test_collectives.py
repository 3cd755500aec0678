"""What the devices of each mesh preset send each other in a train step, read from the compiled program.

On a CPU: there the compiler leaves the sum of gradients that are split (ZeRO-3) an all-reduce and a slice, which those
for TPUs and GPUs make a reduce-scatter (`tests/cost/test_tpu_aot.py`).
"""

from __future__ import annotations

import math

import pytest
from helpers.mesh_steps import FAMILIES_HERE, LENGTH, MESHES, ROWS, model_of, rules_of, step_of

from jaxlm.cost.hlo import Collective
from jaxlm.models.base import flatten

KINDS = {
    "ddp": {"all-reduce"},
    "fsdp": {"all-gather", "all-reduce"},
    "fsdp_tp": {"all-gather", "all-reduce"},
    "tp": {"all-reduce"},
    "hybrid": {"all-gather", "all-reduce"},
    "context": {"all-gather", "all-reduce"},
}
families = pytest.mark.parametrize("family", FAMILIES_HERE)


def sent(family: str, mesh: str, kind: str) -> list[Collective]:
    return [c for c in step_of(family, mesh).collectives if c.kind == kind]


def total(found: list[Collective]) -> int:
    return sum(c.bytes * c.times for c in found)


def parameter_bytes(family: str) -> int:
    return 4 * sum(math.prod(struct.shape) for struct in flatten(model_of(family, rules_of(None)).shapes).values())


def rows_in(collective: Collective) -> bool:
    """Whether it holds anything of the batch's shape [rows, ..., length, ...]."""
    return any(shape[:1] in {(n,) for n in (1, 2, 4, ROWS)} and LENGTH in shape[1:] for _, shape in collective.shapes)


@pytest.mark.parametrize("mesh", MESHES)
@families
def test_kinds(family, mesh):
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


@families
def test_ddp_adds_every_gradient_up_once(family):
    found = total(sent(family, "ddp", "all-reduce"))
    # T5 besides: relative positions [N, T, T] of 3 + 2 layers, and the token table's for each of its three uses.
    extra = 4 * (5 * 4 * LENGTH * LENGTH + 2 * 64 * 16) if family == "t5" else 0
    assert parameter_bytes(family) <= found < 1.05 * parameter_bytes(family) + 64 + extra


@pytest.mark.parametrize("mesh", ["fsdp", "fsdp_tp", "hybrid"])
@families
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


@families
def test_tensor_parallelism_adds_up_activations(family):
    square = (LENGTH, LENGTH)  # gradients of relative positions, over the rows
    added = [c for c in sent(family, "tp", "all-reduce") if rows_in(c) and c.shapes[0][1][-2:] != square]
    assert {c.group_size for c in added} == {2}
    # Rows [R / 4, T, D] of attention and of the MLP in each layer, and no heads, no MLP columns, no logits.
    assert all(shape[-1] <= 16 or LENGTH in shape[-1:] for c in added for _, shape in c.shapes)


@families
def test_context_gathers_keys_and_values_alone(family):
    """Per layer, [R / 2, T, K, H]; and the segment ids, int32."""
    gathered = [c for c in sent(family, "context", "all-gather") if rows_in(c)]
    kv_heads, head_dim = {"bert": (4, 4), "llama": (2, 4), "t5": (4, 4)}[family]
    allowed = {(ROWS // 2, LENGTH, kv_heads, head_dim), (ROWS // 2, kv_heads, LENGTH, head_dim)}
    allowed |= {(ROWS // 2, kv_heads, head_dim, LENGTH)}
    floats = {shape for c in gathered for dtype, shape in c.shapes if dtype == "f32"}
    assert floats and floats <= allowed
    assert {dtype for c in gathered for dtype, _ in c.shapes} <= {"f32", "s32"}
