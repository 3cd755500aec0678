"""`--dry-run` for devices that are not there: names, stand-ins, estimates; the real compilers (marker `tpu_aot`)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import yaml
from helpers.finetuning_runs import run, write_config
from helpers.paths import REPOSITORY

from jaxlm.config.loading import load_config
from jaxlm.cost.compile import CompiledStep, compile_step, estimate, report
from jaxlm.cost.flops import matmul_flops
from jaxlm.cost.hlo import Collective, Kernel, cycles
from jaxlm.cost.profile import SHOWN, instructions
from jaxlm.cost.topology import CompileTarget, parse_topology, requested
from jaxlm.errors import UserError
from jaxlm.parallel.chips import CHIPS
from jaxlm.tokenizer.stand_in import stand_in_tokenizer

CONFIGS = REPOSITORY / "configs" / "pretrain"


def test_names_of_topologies():
    v5e = parse_topology("v5e:2x4")
    assert (v5e.num_chips, v5e.platform, v5e.chip.memory) == (8, "tpu", 16 * 2**30)
    assert parse_topology("V5P:8x8x4").num_chips == 256
    assert parse_topology("h200:8")[1:] == (CHIPS["h200"], (8,), 1)
    two = parse_topology("v5e:4x8*2")
    assert (two.name, two.sizes, two.slices, two.num_chips) == ("v5e:4x8*2", (4, 8), 2, 64)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("v5e", "expected KIND:SIZES"),
        ("v5e-8", "expected KIND:SIZES"),
        ("v9:2x2", "unknown kind 'v9'; expected one of v4, v5e"),
        ("v5p:4x4", "v5p has 3 dimensions, for instance v5p:4x4x4"),
        ("h100:2x4", "h100 has 1 dimension, for instance h100:8"),
        ("v6e:32x16", "expected 1 to 256 chips, found 512"),
        ("v5e:0x4", "expected 1 to 256 chips, found 0"),
        ("v5e:2x4*0", "expected 1 to 256 chips, found 0"),
        ("h200:8*2", "only TPUs come in slices; expected h200:N"),
    ],
)
def test_names_that_are_none(name, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        parse_topology(name)


def test_what_a_command_asks_for():
    assert requested(None, ["seed=1"], dry_run=False) is None
    assert requested("v5e:2x4", [], dry_run=True)[1] == 8
    assert requested(None, ["seed=1", "mesh.devices=3"], dry_run=True) == (None, 3)
    for arguments, expected in (
        (("v5e:2x4", [], False), "only with --dry-run"),
        ((None, ["mesh.devices=3"], False), "only with --dry-run"),
        (("v5e:2x4", ["mesh.devices=3"], True), "not both"),
        ((None, ["mesh.devices=-1"], True), "1 to 256"),
    ):
        with pytest.raises(UserError, match=expected):
            requested(*arguments[:2], dry_run=arguments[2])


SIZES = [("bert", 30522), ("deberta-v2", 128100), ("t5", 32128), ("llama", 32000), ("qwen3", 500)]


@pytest.mark.parametrize("family, size", SIZES)
def test_a_vocabulary_that_stands_in(family, size):
    tokenizer = stand_in_tokenizer(family, size)
    assert tokenizer.vocab_size == size
    assert (tokenizer.mask_id is not None) == (family in ("bert", "deberta-v2"))
    assert (tokenizer.id("<extra_id_99>") is not None) == (family == "t5")


def test_operations_of_matrix_products():
    def layer(x, w):
        return jax.nn.relu(x @ w), None

    def stack(x, w):
        return jax.lax.scan(layer, x, w)[0].sum()

    x, w = jax.ShapeDtypeStruct((5, 7), jnp.float32), jax.ShapeDtypeStruct((3, 7, 7), jnp.float32)
    assert matmul_flops(stack, x, w) == 3 * 2 * 5 * 7 * 7
    assert matmul_flops(jax.jit(jax.checkpoint(stack)), x, w) == 3 * 2 * 5 * 7 * 7


def test_cycles_and_turns_of_a_tpu_program():
    text = """
%cond (p: (s32[])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

%body (p: (s32[])) -> (s32[]) {
  ROOT %f = (s32[]) fusion(%p), kind=kLoop, calls=%f, backend_config={"window_config":{},"estimated_cycles":"30"}
}

ENTRY %main (p: (s32[])) -> (s32[]) {
  %a = f32[8]{0} add(%p, %p), backend_config={"estimated_cycles":"4"}
  %b = f32[8]{0} copy(%a), backend_config={"estimated_cycles":"9223372036854775807"}
  ROOT %w = (s32[]) while(%p), condition=%cond, body=%body
}
"""
    assert cycles(text) == 4 + 5 * 30
    assert cycles(text.replace("estimated_cycles", "none")) is None


def test_a_step_waits_for_what_is_not_overlapped():
    gather = Collective("all-gather", (("bf16", (10**9,)),), 4, True, 3, "", overlapped=True)
    reduce = Collective("all-reduce", (("f32", (10**9,)),), 4, False, 1, "")
    scatter = Collective("reduce-scatter", (("f32", (10**9 // 4,)),), 4, False, 1, "")
    cost = CompiledStep(None, "", {}, 0, 0, 0, 0, "", (gather, reduce, scatter), 459e12, 1_750_000_000)
    step = estimate(cost, CHIPS["v5p"], 1)
    hidden, waiting = 3 * 2e9 * 0.75 / 600e9, (2 * 4e9 * 0.75 + 4e9 * 0.75) / 600e9
    assert step.compute == pytest.approx(1.0)
    assert step.communication == pytest.approx(hidden + waiting)
    assert step.total == pytest.approx(1.0 + waiting)
    assert step.utilization == pytest.approx(1 / step.total)
    slices = replace(cost, collectives=(*cost.collectives, reduce._replace(kind="all-reduce across slices")))
    assert estimate(slices, CHIPS["v5p"], 1) == step  # the network's speed is not known
    # 2 x 2 x 2^18 x 2^17 x 128 operations; by what it reads, the first of these would take less.
    operands = (("bf16", (2**18, 128)), ("bf16", (2**17, 128)))
    kernel = Kernel("splash_mha_fwd_x", operands, 5, "%k = bf16[262144,128] custom-call(%a)")
    seconds = 5 * 2 * 2 * 2**18 * 2**17 * 128 / 459e12
    assert estimate(replace(cost, kernels=(kernel,)), CHIPS["v5p"], 1).compute == pytest.approx(1.0 + seconds)
    turns = Kernel("rotary", operands, 3, "%k = bf16[262144,128]{1,0} custom-call(%a)")  # no products
    moved = 3 * (2 * 2**18 + 2**17) * 128 * 2 / 2765e9
    assert estimate(replace(cost, kernels=(turns,)), CHIPS["v5p"], 1).compute == pytest.approx(1.0 + moved)


def write_tiny(folder: Path, **mesh) -> Path:
    """A pretraining config without its data and tokenizer: 2 layers, width 64."""
    config = {
        "name": "tiny",
        "model": {
            "family": "llama",
            "tokenizer": "no/tokenizer/here",
            "config": {"vocab_size": 512, "num_layers": 2, "embed_dim": 64, "num_heads": 4, "mlp_dim": 128},
        },
        "task": {"kind": "causal_lm"},
        "data": {"train": {"path": "no/such/file.txt"}, "max_length": 32},
        "train": {"batch_size": 16, "steps": 10},
        "mesh": mesh,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def figure(shown: str, name: str) -> float:
    return float(re.search(rf"^{name} +([\d.]+)", shown, re.M).group(1))


def test_bytes_of_parameters_and_optimizer_by_hand(tmp_path):
    """fsdp splits every matrix along its width 64 over the 8 devices; norm scales stay whole."""
    config = load_config(write_tiny(tmp_path, preset="fsdp"))
    cost = compile_step(config, jax.devices()[:8])
    layer = 4 * 64 * 64 + 3 * 64 * 128
    matrices, norms = 2 * layer + 2 * 512 * 64, (2 * 2 + 1) * 64
    assert cost.params == 4 * (matrices // 8 + norms)
    assert cost.optimizer == 2 * cost.params  # AdamW's two moments; its step counts are scalars
    # 6 N T: N of the matrices that are multiplied by (not the token table), and attention's two products.
    tokens = 16 * 32
    assert cost.model_flops == 6 * (2 * layer + 512 * 64) * tokens + 2 * 12 * 64 * 32 * tokens
    assert cost.plan.setup.model.compute.unroll == 1
    shown = "\n".join(report(cost, None, 8))
    assert "8 fake CPU devices" in shown and "fsdp 8" in shown
    assert "no/tokenizer/here" in shown and "512 entries stands in" in shown
    assert re.search(r"all-gather: \d+ a step", shown)


def test_mistakes_have_status_2(tmp_path, capsys):
    path = write_tiny(tmp_path)
    assert run("pretrain", "--config", path, "--topology", "v5e:2x4") == 2
    assert "only with --dry-run" in capsys.readouterr().err
    assert run("pretrain", "--config", path, "--dry-run", "--topology", "v5e:2") == 2
    assert "v5e has 2 dimensions" in capsys.readouterr().err
    assert run("pretrain", "--config", path, "--dry-run", "--profile") == 2
    assert "--profile: expected --dry-run --topology" in capsys.readouterr().err
    assert run("pretrain", "--config", path, "--dry-run", "--topology", "h200:8", "--profile") == 2
    assert "only the TPU compiler estimates cycles" in capsys.readouterr().err


def test_without_libtpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("pretrain", "--config", write_tiny(tmp_path), "--dry-run", "--topology", "v5e:2x4") == 2
    assert "pip install 'jaxlm[tpu]'" in capsys.readouterr().err


def command(config: Path, *arguments: str, flags: str = "") -> str:
    """What the real command prints, in a process of its own."""
    line = [sys.executable, "-m", "jaxlm", "pretrain", "--config", str(config), "--dry-run", *arguments]
    environment = {**os.environ, "XLA_FLAGS": flags}
    done = subprocess.run(line, capture_output=True, text=True, timeout=590, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "INVALID_ARGUMENT" not in done.stderr and "WARNING" not in done.stderr  # libtpu's own noise
    return done.stdout


def kinds(shown: str) -> set[str]:
    return set(re.findall(r"^(?:collectives)? +([a-z-]+): [\d,]+ a step", shown, re.M))


def test_fake_devices_in_a_process_of_its_own(tmp_path):
    """Sixteen, whatever the environment says: here the eight of the tests."""
    assert "device_count=8" in os.environ["XLA_FLAGS"]
    path = write_tiny(tmp_path, preset="fsdp_tp", fsdp=4, tensor=4)
    shown = command(path, "mesh.devices=16", flags=os.environ["XLA_FLAGS"])
    assert re.search(r"^devices +16 fake CPU devices$", shown, re.M)
    assert re.search(r"^mesh +fsdp_tp: fsdp 4, tensor 4$", shown, re.M)
    assert {"all-gather", "all-reduce"} <= kinds(shown)
    number = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 2 * 512 * 64 + (2 * 2 + 1) * 64
    assert re.search(rf"^model +llama, {number:,} parameters$", shown, re.M)
    assert figure(shown, "peak") > 0
    assert not (tmp_path / "runs").exists()


def check_llama(shown: str, number: int, ways: int) -> None:
    """By hand: parameters split so many ways, 4 bytes each, and twice that of AdamW; what layers gather and add up."""
    share = number * 4 / ways / 2**30
    assert figure(shown, "parameters") == pytest.approx(share, rel=0.05)
    assert figure(shown, "optimizer state") == pytest.approx(2 * share, rel=0.05)
    assert "fits             yes" in shown
    assert kinds(shown) <= {"all-gather", "all-reduce", "reduce-scatter"} and "all-gather" in kinds(shown)
    # In each micro-batch each weight once forward and once backward in two bytes; the head's table, too, is read in the
    # backward pass.
    gathered = float(re.search(r"all-gather: [\d,]+ a step, ([\d.]+) GiB", shown).group(1))
    micro_batches = int(re.search(r"(\d+) micro-batch", shown).group(1))
    assert gathered < 1.05 * 2 * 2 * number * micro_batches / 2**30


@pytest.mark.tpu_aot
def test_fine_tuning_on_two_hosts(tmp_path):
    """JAX takes the devices of a topology's first host for this process's own; no process holds any of them."""
    config = load_config(write_config(tmp_path, train={"batch_size": 8, "epochs": 1}, mesh={"preset": "fsdp"}))
    devices = CompileTarget(topology := parse_topology("v5e:2x4"), 8).devices()
    assert {device.process_index for device in devices} == {0, 1}
    cost = compile_step(config, devices)
    [rows, columns] = cost.batch["tokens"].shape[1:]
    assert rows in cost.plan.loader.shapes.row_counts and rows % 8 == 0 and columns >= 8
    assert "fits             yes" in "\n".join(report(cost, topology, 8))
    found = instructions(cost.text, topology.chip)
    kernels = ("mha", "rotary")
    assert sum(i.cycles for i in found if not any(name in i.operation for name in kernels)) == cost.cycles
    assert any(re.search(r"layers\.py:\d+ < \w+\.py:\d+", i.source) for i in found[:SHOWN]), found[:SHOWN]


@pytest.mark.tpu_aot
def test_the_gradient_of_a_tied_table_is_added_up_over_devices_once(tmp_path):
    """Its two parts, of the look-up and of the logits, meet before."""
    config = load_config(
        write_tiny(tmp_path, preset="fsdp"),
        ["model.config.tied=true", "model.logits_chunk=8", "model.config.vocab_size=1280"],
    )
    cost = compile_step(config, CompileTarget(parse_topology("v5e:2x4"), 8).devices())
    added = [shape for c in cost.collectives if c.kind != "all-gather" for _, shape in c.shapes if 1280 in shape]
    assert len(added) == 1


@pytest.mark.tpu_aot
def test_two_slices_exchange_gradients_alone(tmp_path):
    config = load_config(write_tiny(tmp_path, preset="hybrid"))
    cost = compile_step(config, CompileTarget(parse_topology("v5e:2x4*2"), 16).devices())
    across = [c for c in cost.collectives if c.kind.endswith("across slices")]
    assert across and {c.kind for c in across} == {"all-reduce across slices"}
    matrices = 4 * 64 * 64 + 3 * 64 * 128  # of a layer
    share = 4 * (2 * matrices + 2 * 512 * 64) / 8  # gradients are added up inside a slice first
    assert share < sum(c.times * c.bytes for c in across) < 3 * share  # arrays are filled up to tiles


@pytest.mark.tpu_aot
def test_7b_on_64_chips():
    check_llama(command(CONFIGS / "llama_7b.yaml", "--topology", "v5p:4x4x4"), 6_738_415_616, 32)


@pytest.mark.tpu_aot
def test_70b_on_256_chips():
    check_llama(command(CONFIGS / "llama_70b.yaml", "--topology", "v5p:8x8x4"), 68_976_648_192, 128)


@pytest.mark.tpu_aot
def test_what_does_not_fit(tmp_path):
    shown = command(
        CONFIGS / "llama_7b.yaml", "--topology", "v5e:2x2", "train.batch_size=16", "mesh.preset=ddp", "mesh.data=-1",
        "model.config.num_layers=4",
    )  # fmt: skip
    assert re.search(r"fits +NO: ", shown)


@pytest.mark.cuda_aot
@pytest.mark.parametrize(
    "config, share, overrides",
    [
        ("bert_large", 1, ("mesh.preset=ddp", "model.unroll=1")),
        ("llama_1b", 8, ("model.unroll=1",)),
        ("t5_xl", 8, ("mesh.data=1", "train.grad_accum_steps=8")),
    ],
)
def test_steps_compile_for_gpus(config, share, overrides):
    """An encoder, a decoder and both; parameters whole under ddp, an eighth under fsdp, but for norms and biases."""
    shown = command(CONFIGS / f"{config}.yaml", "--topology", "h200:8", *overrides)
    assert "fits             yes" in shown
    number = int(re.search(r"([\d,]+) parameters", shown).group(1).replace(",", ""))
    assert figure(shown, "parameters") == pytest.approx(4 * number / share / 2**30, rel=0.05)
    assert kinds(shown) == ({"all-reduce"} if share == 1 else {"all-gather", "reduce-scatter", "all-reduce"})
    assert re.search(r"step time +[\d.]+ s, estimated: .*roofline", shown)
