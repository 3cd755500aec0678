"""Collectives are read from compiled programs: kinds, bytes, groups, loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxlm.cost.hlo import Collective, bits, collectives, kernels
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, constrain

TEXT = """
HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body.1 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %gathered = (bf16[4,8]{1,0}, bf16[16,8]{1,0:T(8,128)}) all-gather-start(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, metadata={op_name="jit(step)/while/dot"}
  %done = bf16[16,8]{1,0} all-gather-done(%gathered)
  ROOT %call = (s32[], f32[4,8]) call(%p), to_apply=%inner.2
}

%inner.2 (p: f32[4]) -> f32[4] {
  ROOT %scattered = f32[4]{0} reduce-scatter(%p), replica_groups={{0,1},{2,3}}, dimensions={0}, to_apply=%add
}

%condition.3 (p: s32[]) -> pred[] {
  ROOT %less = pred[] compare(%p, %p), direction=LT
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %loop = (s32[], f32[4,8]) while(%tuple), condition=%condition.3, body=%body.1, backend_config={"known_trip_count":{"n":"12"}}
  %kernel = f32[4]{0} custom-call(%c), custom_call_target="tpu_custom_call", backend_config={"metadata": {"blocks":
"128"
}}, metadata={op_name="attention"}
  %joined = (f32[4,8]{1,0}, /*index=1*/s8[3]{0}) all-reduce(%a, %b), replica_groups=[1,8]<=[8], to_apply=%add
  %meshed = f32[2]{0} all-reduce(%c), replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([2,2,2]T(1,0,2)) {'axis_0','axis_1':(2)2}, to_apply=%add
  %alone = f32[4]{0} all-reduce(%c), replica_groups={{0},{1}}, to_apply=%add
  %moved = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%d), source_target_pairs={{0,1},{1,0}}
  ROOT %out = f32[4,8] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_text_as_compilers_write_it():
    assert collectives(TEXT) == [
        Collective("all-gather", (("bf16", (16, 8)),), 4, True, 12, "jit(step)/while/dot", overlapped=True),
        Collective("reduce-scatter", (("f32", (4,)),), 2, True, 12, ""),
        Collective("all-reduce", (("f32", (4, 8)), ("s8", (3,))), 8, False, 1, ""),
        Collective("all-reduce", (("f32", (2,)),), 4, False, 1, ""),
        Collective("collective-permute", (("f32", (2,)),), 2, False, 1, "", overlapped=True),
    ]
    assert [c.bytes for c in collectives(TEXT)] == [256, 16, 131, 8, 8]


FUSED = """
%all-reduce-scatter.4.clone (a: f32[16,8], b: bf16[16]) -> (f32[2,8], bf16[2]) {
  %all-reduce.3 = (f32[16,8]{1,0:T(8,128)}, bf16[16]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %part = f32[16,8]{1,0} get-tuple-element(%all-reduce.3), index=0
  ROOT %tuple.7 = (f32[2,8]{1,0:T(8,128)S(1)}, bf16[2]{0}) tuple(%slice.1, %slice.2)
}

ENTRY %main (p: f32[16,8]) -> f32[2,8] {
  %fusion.3 = (f32[2,8]{1,0}, bf16[2]{0}) fusion(%p, %q), kind=kCustom, calls=%all-reduce-scatter.4.clone, metadata={op_name="jit(step)/dot"}
  %splash_mha_dq_residuals.12 = bf16[2,16,256,64]{3,2,1,0} custom-call(%a, %b), custom_call_target="tpu_custom_call", operand_layout_constraints={s8[1,1]{1,0}, bf16[2,16,256,64]{3,2,1,0}}, backend_config={"blocks": "{1}"}
}
"""  # noqa: E501


OVERLAPPED = """
%fused_computation.1 (p: bf16[2,8]) -> bf16[16,8] {
  ROOT %all-gather.1 = bf16[16,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, metadata={op_name="jit(step)/gather"}
}

%async_collective_fusion.7 (p: bf16[2,8]) -> bf16[16,8] {
  %all-gather.2 = bf16[16,8]{1,0:S(1)} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%fused_computation.2 (p: bf16[2,8]) -> bf16[16,8] {
  %all-gather.3 = bf16[16,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

%body (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %start = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%fused_computation.1
  %middle = bf16[16,8]{1,0} fusion(%p), kind=kOutput, calls=%async_collective_fusion.7
  %done = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%fused_computation.2
}

ENTRY %main (p: f32[16,8]) -> f32[2,8] {
  %loop = (s32[], bf16[2,8]) while(%tuple), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %other = bf16[16,8]{1,0} all-gather(%p), channel_id=6, replica_groups=[1,8]<=[8], dimensions={0}
  %scattered = ((f32[16,8]{1,0}, f32[8]{0}), (f32[2,8]{1,0}, f32[1]{0})) reduce-scatter-start(%p, %q), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
  %send = (f32[2,8]{1,0}, u32[], token[]) send(%p, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[2,8]{1,0:T(8,128)}, u32[], token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done = (f32[2,8]{1,0}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %other-recv = (f32[2,8]{1,0}, u32[], token[]) recv(%after-all), channel_id=9, is_host_transfer=true
}
"""  # noqa: E501


def test_a_channel_counts_once_a_scatter_by_its_results_and_what_crosses_slices():
    assert collectives(OVERLAPPED) == [
        Collective("all-gather", (("bf16", (16, 8)),), 8, True, 3, "jit(step)/gather", overlapped=True),
        Collective("all-gather", (("bf16", (16, 8)),), 8, False, 1, ""),
        Collective("reduce-scatter", (("f32", (2, 8)), ("f32", (1,))), 8, False, 1, "", overlapped=True),
        Collective("all-reduce across slices", (("f32", (2, 8)),), 0, False, 1, "", overlapped=True),
    ]


PEELED = """
%body (p: (s32[], bf16[2,8])) -> (s32[], bf16[2,8]) {
  %next = bf16[16,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main (p: bf16[2,8]) -> f32[16,8] {
  %first = bf16[16,8]{1,0} all-gather(%p), channel_id=5, replica_groups=[1,8]<=[8], dimensions={0}
  %loop = (s32[], bf16[2,8]) while(%tuple), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %after = f32[16,8]{1,0} all-reduce(%q), channel_id=6, replica_groups=[1,8]<=[8], to_apply=%add
}
"""


def test_what_follows_a_loop_whose_first_turn_stands_before_it_counts_once():
    assert collectives(PEELED) == [
        Collective("all-gather", (("bf16", (16, 8)),), 8, True, 3, ""),
        Collective("all-reduce", (("f32", (16, 8)),), 8, False, 1, ""),
    ]


def test_the_tpu_compilers_reduce_scatter_and_kernels():
    shapes = (("f32", (2, 8)), ("bf16", (2,)))
    assert collectives(FUSED) == [Collective("reduce-scatter", shapes, 8, False, 1, "jit(step)/dot")]
    operands = (("s8", (1, 1)), ("bf16", (2, 16, 256, 64)))
    [kernel] = kernels(FUSED)
    assert kernel[:3] == ("splash_mha_dq_residuals", operands, 1) and kernel.line in FUSED.splitlines()


def test_a_compiled_program():
    rules = Rules(make_mesh("fsdp"))
    matrix = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32, sharding=rules.sharding((None, "embed", None)))
    rows = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rules.sharding(("batch", None)))

    def program(x, layers):
        step = lambda x, layer: (constrain(jnp.tanh(x @ layer), ("batch", None), rules), None)  # noqa: E731
        return jax.lax.scan(step, x, layers)[0].sum()

    found = collectives(jax.jit(program).lower(rows, matrix).compile().as_text())
    gathered = [c for c in found if c.kind == "all-gather"]
    assert [(c.shapes, c.group_size, c.looped, c.times) for c in gathered] == [((("f32", (16, 16)),), 8, True, 3)]
    assert [(c.bytes, c.looped) for c in found if c.kind == "all-reduce"] == [(4, False)]


def test_sizes_of_elements():
    assert [bits(dtype) for dtype in ("f32", "bf16", "s8", "pred", "f8e4m3fn", "u4")] == [32, 16, 8, 8, 8, 4]
    with pytest.raises(ValueError, match="unknown HLO dtype 'opaque'"):
        bits("opaque")
