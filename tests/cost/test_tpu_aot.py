"""Every family, every task and every mesh preset go through the real TPU compiler, on this CPU: marker `tpu_aot`.

tests/helpers/tpu_matrix.py chooses the pairs; the full product is compiled by hand, by scripts/matrix.py.
"""

from __future__ import annotations

import pytest
from helpers.tpu_matrix import TASKS, case, check, compile_all, pairs

from jaxlm.models import FAMILIES
from jaxlm.parallel.mesh import PRESETS


def test_the_matrix_has_every_family_task_and_preset():
    assert set(TASKS) == set(FAMILIES) - {"xlm-roberta"}
    chosen = pairs()
    assert {found["family"] for found in chosen} == set(TASKS)
    assert {found["task"] for found in chosen} == {task for tasks in TASKS.values() for task in tasks}
    assert {found["preset"] for found in chosen} == set(PRESETS)


@pytest.mark.tpu_aot
@pytest.mark.timeout(1200)
def test_pairs_that_differ_compile_for_v5e():
    found = compile_all(pairs())
    check(found)
    sizes = {case["preset"]: case["parameters"] for case in found if case["family"] == "bert"}
    assert sizes["fsdp"] < 0.14 * sizes["ddp"]  # an eighth, and the norms and biases that stay whole


@pytest.mark.tpu_aot
@pytest.mark.timeout(1200)
def test_an_encoder_a_decoder_and_both_compile_for_pods():
    chosen = [
        ("bert", "masked_lm", "v5p:4x4x4"),
        ("t5", "span_corruption", "v5p:4x4x4"),
        ("llama", "causal_lm", "v6e:16x16"),
    ]
    check(compile_all([case(family, task, "fsdp", topology=topology) for family, task, topology in chosen]))
