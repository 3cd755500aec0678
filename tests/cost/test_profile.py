"""The table of `--dry-run --topology T --profile`, from a program as the TPU compiler writes it."""

from __future__ import annotations

import pytest

from jaxlm.cost.hlo import cycles
from jaxlm.cost.profile import instructions, profile_lines
from jaxlm.parallel.chips import CHIPS

TEXT = """HloModule jit_f, is_scheduled=true

FileNames
1 "/somewhere/train.py"
2 "/somewhere/layers.py"

FunctionNames
1 "f"
2 "dense"

FileLocations
1 {file_name_id=1 function_name_id=1 line=11 end_line=11 column=11 end_column=33}
2 {file_name_id=2 function_name_id=2 line=8 end_line=8 column=23 end_column=36}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%body (p: (s32[], bf16[512,1024])) -> (s32[], bf16[512,1024]) {
  %fusion.8 = bf16[512,1024]{1,0} fusion(%p), metadata={op_name="jit(f)/jvp()/while/body/dot_general" stack_frame_id=2}, backend_config={"estimated_cycles":"100"}
  %fusion.9 = f32[7]{0} fusion(%p), metadata={op_name="jit(f)/transpose(jvp())/while/body/rematted/mul" stack_frame_id=2}, backend_config={"estimated_cycles":"9"}
  %flash_mha_fwd_whole.2 = (bf16[1,2,256,128]{3,2,1,0}) custom-call(%a, %b), custom_call_target="tpu_custom_call", operand_layout_constraints={s32[5]{0}, bf16[1,2,256,128]{3,2,1,0}, bf16[1,2,256,128]{3,2,1,0}}, metadata={op_name="jit(f)/x" stack_frame_id=1}
}

%condition (c: (s32[], bf16[512,1024])) -> pred[] {
  ROOT %compare = pred[] compare(%c, %n), direction=LT
}

ENTRY %main (x: bf16[512,1024]) -> bf16[512,1024] {
  %copy.3 = bf16[512,1024]{1,0} copy(%x), backend_config={"estimated_cycles":"5"}
  %copy.4 = bf16[512,1024]{1,0} copy(%x), backend_config={"estimated_cycles":"6"}
  %unknown = bf16[8]{0} copy(%x), backend_config={"estimated_cycles":"9223372036854775807"}
  %while.1 = (s32[], bf16[512,1024]) while(%copy.3), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
}
"""  # noqa: E501


def test_instructions_by_their_cycles():
    chip = CHIPS["v5e"]
    kernel, first, *others = instructions(TEXT, chip)
    assert first == ("dot_general", "bf16[512,1024]", "layers.py:8 < train.py:11", 4, 400)
    assert others == [
        ("remat backward mul", "f32[7]", "layers.py:8 < train.py:11", 4, 36),
        ("copy", "bf16[512,1024]", "", 2, 11),
    ]
    products = 4 * 2 * 2 * (2 * 256 * 256 * 128)  # four turns, two heads, two products
    assert kernel[:4] == ("flash_mha_fwd_whole", "bf16[1,2,256,128]", "train.py:11", 4)
    moved = 4 * (4 * 5 + 3 * 2 * (2 * 256 * 128))  # of operands and result, which take longer in so short rows
    assert kernel.cycles == pytest.approx(moved / chip.memory_bandwidth * chip.clock)
    assert products / chip.flops < moved / chip.memory_bandwidth
    assert sum(found.cycles for found in (first, *others)) == cycles(TEXT)


def test_the_table_says_which_share_it_shows(monkeypatch):
    chip = CHIPS["v5e"]
    head, _, *rows = profile_lines(instructions(TEXT, chip), chip)
    assert head.startswith("profile          4 of 4 instructions, 100% of") and len(rows) == 4
    monkeypatch.setattr("jaxlm.cost.profile.SHOWN", 2)
    head, _, *rows = profile_lines(instructions(TEXT, chip), chip)
    assert "2 of 4 instructions, 9" in head
    assert [row.split()[-1] for row in rows] == ["flash_mha_fwd_whole", "dot_general"]
