"""The steps that the real TPU compiler is given, on this CPU, and what must be in them.

tests/cost/test_tpu_aot.py compiles pairs of a task and a mesh that differ; scripts/matrix.py, by hand, all of them.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from helpers.paths import TESTS

from jaxlm.parallel.mesh import PRESETS

PROGRAM = TESTS / "helpers" / "tpu_programs.py"
READING = ("tagging", "question_answering", "multiple_choice")
TASKS = {
    "albert": ("classification", "masked_lm", *READING),
    "bart": ("translation",),
    "bert": ("classification", "masked_lm", *READING),
    "deberta-v2": ("classification", "masked_lm"),
    "distilbert": ("classification", "masked_lm", *READING),
    "electra": ("replaced_tokens",),
    "gpt2": ("classification", "causal_lm", "prefix_lm"),
    "gru": ("classification", "causal_lm"),
    "gru_seq2seq": ("translation",),
    "llama": ("classification", "causal_lm", "prefix_lm"),
    "lstm": ("classification", "causal_lm"),
    "lstm_seq2seq": ("translation",),
    "marian": ("translation",),
    "mbart": ("translation",),
    "mistral": ("classification", "causal_lm", "prefix_lm"),
    "modernbert": ("classification", "masked_lm", *READING),
    "mpnet": ("classification", "masked_lm"),
    "mt5": ("span_corruption",),
    "pegasus": ("translation",),
    "qwen2": ("classification", "causal_lm", "prefix_lm"),
    "qwen3": ("classification", "causal_lm", "prefix_lm"),
    "roberta": ("classification", "masked_lm", *READING),
    "t5": ("span_corruption",),
}
"""XLM-RoBERTa has RoBERTa's modules, and ELECTRA's classifier has BERT's."""
GENERATIVE = ("causal_lm", "prefix_lm", "span_corruption", "translation")
RECURRENT = ("gru", "gru_seq2seq", "lstm", "lstm_seq2seq")
RELATIVE = ("deberta-v2", "mpnet")
"""Encoders whose logits have relative positions added to them, which the kernel does not do."""
REFUSED = [(family, "context") for family in RECURRENT]
"""A recurrent network reads its rows in order."""
SPLIT = {"all-gather", "reduce-scatter", "all-reduce"}
"""Parameters gathered, gradients added up where they are kept; sums over rows, and gradients of what is not split."""
KINDS = {
    "ddp": {"all-reduce"}, "tp": {"all-reduce"},
    "fsdp": SPLIT, "fsdp_tp": SPLIT, "hybrid": SPLIT | {"all-reduce across slices"}, "context": SPLIT,
}  # fmt: skip
SPLASH = {"train": ("splash_mha_dkv_", "splash_mha_dq_", "splash_mha_fwd_"), "eval": ("splash_mha_fwd_",), "decode": ()}
FLASH = {"train": ("flash_mha_bwd_", "flash_mha_fwd_"), "eval": ("flash_mha_fwd_",), "decode": ()}
"""Where each device has heads that fill blocks of lanes; and when DistilBERT trains, which drops out probabilities."""
TENSOR = ("tp", "fsdp_tp")
"""Presets that divide the 128 lanes of all heads."""
TURNED = ("llama", "mistral", "modernbert", "qwen2", "qwen3")
"""Families of rotary positions, which have a kernel of their own where heads fill blocks."""
GIB = {"v5e": 16, "v5p": 95, "v6e": 32}
LENGTH = 640
"""Columns of the compiled rows; no parameter has this dimension."""


def case(family: str, task: str, preset: str, step: str = "train", topology: str = "v5e:2x4") -> dict[str, str]:
    return {"topology": topology, "family": family, "task": task, "preset": preset, "step": step}


def pairs() -> list[dict[str, str]]:
    """Each family, each task, each preset at least once, each step under several presets."""
    trained = [
        ("albert", "masked_lm", "fsdp"),
        ("bart", "translation", "fsdp"), ("pegasus", "translation", "context"),
        ("lstm_seq2seq", "translation", "fsdp_tp"),
        ("bert", "classification", "ddp"), ("bert", "tagging", "fsdp"), ("bert", "masked_lm", "context"),
        ("deberta-v2", "masked_lm", "fsdp_tp"), ("mpnet", "classification", "context"),
        ("distilbert", "masked_lm", "tp"), ("electra", "replaced_tokens", "fsdp_tp"), ("gpt2", "prefix_lm", "hybrid"),
        ("gru", "causal_lm", "fsdp"), ("llama", "causal_lm", "context"), ("lstm", "classification", "ddp"),
        ("mistral", "causal_lm", "fsdp_tp"), ("modernbert", "masked_lm", "context"),
        ("mt5", "span_corruption", "tp"), ("qwen2", "causal_lm", "tp"),
        ("qwen3", "classification", "hybrid"), ("roberta", "masked_lm", "hybrid"),
        ("roberta", "question_answering", "fsdp_tp"), ("distilbert", "multiple_choice", "context"),
        ("t5", "span_corruption", "context"),
    ]  # fmt: skip
    evaluated = [
        ("electra", "replaced_tokens", "tp"),
        ("llama", "causal_lm", "fsdp_tp"),
        ("marian", "translation", "tp"),
        ("mbart", "translation", "hybrid"),
        ("t5", "span_corruption", "ddp"),
    ]
    decoded = [
        ("bart", "translation", "fsdp_tp"), ("gru_seq2seq", "translation", "fsdp"),
        ("gpt2", "prefix_lm", "fsdp"), ("gru", "causal_lm", "tp"),
        ("qwen3", "causal_lm", "context"),
    ]  # fmt: skip
    steps = {"train": trained, "eval": evaluated, "decode": decoded}
    return [case(*names, step) for step, found in steps.items() for names in found]


def cases(family: str) -> list[dict[str, str]]:
    """Of the full product: each task of a family trains under every preset, is evaluated and generates under one."""
    presets = [preset for preset in PRESETS if (family, preset) not in REFUSED]
    first = list(TASKS).index(family)
    found = []
    for turn, task in enumerate(TASKS[family], first):
        found += [case(family, task, preset) for preset in presets]
        found.append(case(family, task, presets[turn % len(presets)], "eval"))
        if task in GENERATIVE:
            found.append(case(family, task, presets[(turn + 1) % len(presets)], "decode"))
    return found


def compile_all(wanted: list[dict[str, str]]) -> list[dict]:
    """In two processes, each of which mostly keeps to one core."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
    environment["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"  # nothing here holds a TPU; another run may compile, too

    def run(part: list[dict[str, str]]) -> list[dict]:
        command = [sys.executable, str(PROGRAM), json.dumps(part)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1000)
        assert done.returncode == 0, done.stderr[-3000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    with ThreadPoolExecutor(2) as pool:
        found = [case for part in pool.map(run, (wanted[::2], wanted[1::2])) for case in part]
    assert len(found) == len(wanted)
    return found


def mistakes(found: dict) -> list[str]:
    """What is wrong with a compiled step."""
    if "error" in found:
        return [found["error"]]
    family, task, preset, step = (found[key] for key in ("family", "task", "preset", "step"))
    wrong = []
    known = SPLASH if preset in TENSOR and (family, step) != ("distilbert", "train") else FLASH
    # A prefix mask and a cached step are XLA's; of T5's attention the kernel has what reads the encoder.
    kernels = () if family in (*RECURRENT, *RELATIVE) or task == "prefix_lm" else known[step]
    if (task, step) == ("translation", "decode") and family not in RECURRENT:
        kernels = known["eval"]  # of the encoder
    names = [name for name in found["kernels"] if not name.startswith("rotary")]
    # Of an encoder-decoder there is a causal one, too.
    attention = sorted({re.sub(r"(flash_mha_\w+?_)(of_\d+_)?(causal|whole)", r"\1", name) for name in names})
    if len(attention) != len(kernels) or not all(map(str.startswith, attention, kernels)):
        wrong.append(f"kernels {attention}, expected {kernels}")
    turns = family in TURNED and preset not in TENSOR
    if step != "decode" and turns != (len(names) < len(found["kernels"])):
        wrong.append(f"kernels {found['kernels']}, expected {'some' if turns else 'none'} of rotary positions")
    # T5's attention to itself is XLA's: relative positions are added to the scores of each pair of columns.
    if kernels and kernels == known[step] and family not in ("t5", "mt5") and str(LENGTH) in found["squares"]:
        wrong.append(f"an array of {LENGTH} x {LENGTH} beside the attention kernel")
    if found["bytes"] > GIB[found["topology"].split(":")[0]] * 2**30:
        wrong.append(f"{found['bytes']} bytes do not fit")
    wrong += [
        f"{kind} of {shapes} at {name}"
        for kind, name, shapes in found["collectives"]
        if not expected(found, kind, name, shapes)
    ]
    if not found["collectives"] and step == "train":
        wrong.append("no collectives")
    return wrong


def expected(found: dict, kind: str, name: str, shapes: list[list[int]]) -> bool:
    """Whether a collective is one that this preset is known for."""
    preset, size = found["preset"], max(map(math.prod, shapes))
    shared = found["family"] in ("t5", "mt5", "mpnet") and [LENGTH, LENGTH] in [s[-2:] for s in shapes]
    if shared and kind == "all-reduce":
        return found["step"] == "train"  # the gradient of the relative positions, which all rows share
    if found["step"] == "decode" and name.endswith("jit(fill)/scatter"):
        return True  # what was read of texts that move into slots of other devices, once a filling
    if preset in ("ddp", "fsdp", "hybrid") and any(LENGTH in shape for shape in shapes):
        return False  # each device has its rows whole
    if kind in KINDS[preset]:
        return True
    if kind == "collective-permute" and KINDS[preset] == SPLIT and name.endswith("/dot_general"):
        # A gathered matrix or the addition of its gradient, in parts that travel while others are multiplied.
        return not any(LENGTH in shape for shape in shapes)
    if found["step"] == "decode" and size <= 256:
        return True  # the tokens that come out, whole; the last column's states
    if kind == "collective-permute" and preset == "context":
        # Each device makes its queries' rows of the relative positions, and hands its neighbour the rest of one.
        small = size <= 8 * 1024 or found["family"] in RELATIVE  # which are different in each row and layer
        return found["family"] in ("t5", "mt5", *RELATIVE) and small and name.endswith(("/slice", "/pad"))
    if kind == "all-gather" and preset == "tp":
        return name.endswith("/reduce") and shapes[0][-1] == 8  # the greatest of a vocabulary, of each device's part
    return False


def check(found: list[dict]) -> None:
    bad = {
        " ".join(case[key] for key in ("family", "task", "preset", "step", "topology")): mistakes(case)
        for case in found
    }
    bad = {case: wrong for case, wrong in bad.items() if wrong}
    assert not bad, "\n".join(f"{case}: {'; '.join(wrong)[:1500]}" for case, wrong in bad.items())
