"""Every family and task through the real TPU compiler, on this CPU; tests/tpu_aot.py compiles.

Marker `tpu_matrix`: some 140 programs, too many for every run of the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxlm.models import FAMILIES
from jaxlm.sharding import PRESETS

PROGRAM = Path(__file__).with_name("tpu_aot.py")
TASKS = {
    "bert": ("classification", "masked_lm"),
    "distilbert": ("classification", "masked_lm"),
    "electra": ("replaced_tokens",),
    "gpt2": ("classification", "causal_lm", "prefix_lm"),
    "gru": ("classification", "causal_lm"),
    "llama": ("classification", "causal_lm", "prefix_lm"),
    "lstm": ("classification", "causal_lm"),
    "mistral": ("causal_lm", "prefix_lm", "classification"),
    "mt5": ("span_corruption",),
    "qwen2": ("causal_lm", "prefix_lm", "classification"),
    "qwen3": ("causal_lm", "prefix_lm", "classification"),
    "roberta": ("classification", "masked_lm"),
    "t5": ("span_corruption",),
}
"""XLM-RoBERTa has RoBERTa's modules, and ELECTRA's classifier has BERT's."""
GENERATIVE = ("causal_lm", "prefix_lm")
ALLOWED = {"all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all"}
GIB = {"v5e": 16, "v5p": 95, "v6e": 32}


def cases(family: str) -> list[dict[str, str]]:
    """A family under every preset, its tasks taking turns; where it trains, and every other time all that it does."""
    tasks, first, found = TASKS[family], list(TASKS).index(family), []
    for turn, preset in enumerate(PRESETS, first):
        task = tasks[turn % len(tasks)]
        steps = ("train", "eval", "decode") if task in GENERATIVE else ("train", "eval")
        case = {"topology": "v5e:2x4", "family": family, "task": task, "preset": preset}
        found += [case | {"step": step} for step in (steps if turn % 2 else steps[:1])]
    return found


def compile_all(wanted: list[dict[str, str]]) -> list[dict]:
    """In two processes, each of which mostly keeps to one core."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"  # nothing here holds a TPU; another run may compile, too

    def run(part: list[dict[str, str]]) -> list[dict]:
        command = [sys.executable, str(PROGRAM), json.dumps(part)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    with ThreadPoolExecutor(2) as pool:
        found = [case for part in pool.map(run, (wanted[::2], wanted[1::2])) for case in part]
    assert len(found) == len(wanted)
    return found


def mistakes(found: dict) -> str | None:
    """What is wrong with one compiled step, if anything."""
    if "error" in found:
        return found["error"]
    kinds, kernel = set(found["collectives"]), found["kernels"] > 0
    recurrent = found["family"] in ("lstm", "gru")
    # A prefix mask and a cached step are XLA's; of T5's attention the kernel has what reads the encoder.
    if kernel != (not recurrent and found["task"] != "prefix_lm" and found["step"] != "decode"):
        return f"{found['kernels']} splash kernels"
    if found["bytes"] > GIB[found["topology"].split(":")[0]] * 2**30:
        return f"{found['bytes']} bytes do not fit"
    if found["preset"] == "ddp" and kinds > {"all-reduce"}:
        return f"collectives {kinds} where only gradients and sums are added up"
    looked_up = all("_take" in name for name in found["collectives"].get("all-to-all", []))
    if not kinds <= ALLOWED or not looked_up:  # rows of a split embedding table change places
        return f"collectives {found['collectives']}"
    if found["preset"] != "ddp" and found["step"] == "train" and not kinds:
        return "no collectives"
    return None


def check(found: list[dict]) -> None:
    bad = {
        tuple(case[key] for key in ("family", "task", "preset", "step", "topology")): mistakes(case) for case in found
    }
    bad = {case: why for case, why in bad.items() if why}
    assert not bad, "\n".join(f"{' '.join(case)}: {why}" for case, why in bad.items())


def test_every_family_and_every_task_meets_every_preset():
    assert set(TASKS) == set(FAMILIES) - {"xlm-roberta"}
    met = {(case["task"], case["preset"]) for family in TASKS for case in cases(family)}
    assert met == {(task, preset) for tasks in TASKS.values() for task in tasks for preset in PRESETS}


@pytest.mark.tpu_matrix
@pytest.mark.parametrize("family", TASKS)
def test_every_step_compiles_for_v5e(family):
    found = compile_all(cases(family))
    check(found)
    sizes = {case["preset"]: case["arguments"] for case in found if case["step"] == "train"}
    # An eighth, and the norms and biases that stay whole.
    assert sizes["fsdp"] < 0.2 * sizes["ddp"]


@pytest.mark.tpu_matrix
@pytest.mark.parametrize("topology", ["v5p:4x4x4", "v6e:16x16"])
def test_an_encoder_a_decoder_and_both_compile_for_pods(topology):
    both = (("bert", "masked_lm"), ("llama", "causal_lm"), ("t5", "span_corruption"))
    check(
        compile_all(
            [
                {"topology": topology, "family": family, "task": task, "preset": "fsdp", "step": "train"}
                for family, task in both
            ]
        )
    )
