"""`--dry-run` for devices that are not there: compiles the train step ahead of time and says what it will cost."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import jax

from jaxlm.config.schema import Config
from jaxlm.cost.flops import kernel_seconds, matmul_flops
from jaxlm.cost.hlo import ACROSS_SLICES, Collective, Kernel, collectives, cycles, kernels
from jaxlm.cost.memory import peak_bytes, state_lines, step_lines
from jaxlm.cost.profile import instructions, profile_lines
from jaxlm.cost.stand_in import setup_for_shapes
from jaxlm.cost.topology import CompileTarget, Topology, has_cudnn, quiet, without_cache
from jaxlm.errors import RunFailure, UserError
from jaxlm.parallel.chips import GIB, Chip
from jaxlm.parallel.sharding import Rules
from jaxlm.setup.setup import Setup
from jaxlm.training.plan import make_plan
from jaxlm.training.run import check_validation, named_metric
from jaxlm.training.state import bytes_on_device


@dataclass(frozen=True)
class CompiledStep:
    """What one step of a run costs on one of the devices it is compiled for."""

    plan: Any
    """The run's `train.Plan`."""
    tokenizer: str
    """What stands in for it, if anything."""
    batch: dict[str, jax.ShapeDtypeStruct]
    params: int
    """Bytes, as the following."""
    optimizer: int
    temporaries: int | None
    """None: the compiler found no room."""
    peak: int | None
    refusal: str
    """What the compiler said then."""
    collectives: tuple[Collective, ...]
    model_flops: float
    """Of the whole step on all devices: three times the matrix products of the forward pass."""
    cycles: int | None
    """The TPU compiler's estimate, without communication and kernels."""
    kernels: tuple[Kernel, ...] = ()
    """Of one device."""
    text: str = ""
    """The compiled program."""


def dry_run_for(config: Config, absent: CompileTarget, *, profile: bool = False) -> str:
    """Compiles one step for absent devices; returns the report. No parameter is made and nothing is written.

    Args:
      profile: also list the instructions that take longest by the TPU compiler's estimates.
    Raises:
      UserError: as the run itself would; the compiler is not installed or does not know the topology.
      RunFailure: the step does not compile, for another reason than memory.
    """
    chip = absent.topology.chip if absent.topology else None
    if profile and (chip is None or chip.clock is None):
        raise UserError("--profile: only the TPU compiler estimates cycles: expected --topology v5e:2x4 or the like")
    cost = compile_step(config, absent.devices())
    lines = report(cost, absent.topology, absent.number)
    if profile and chip is not None and cost.text:
        lines += ["", *profile_lines(instructions(cost.text, chip), chip)]
    return "\n".join(lines)


def compile_step(config: Config, devices: list[Any]) -> CompiledStep:
    """Compiles a run's train step for `devices`; arguments and errors as in `dry_run_for`."""
    if config.model.init_config is not None:
        raise UserError(f"model.init={config.model.init}: expected the directory of that run; finish it first")
    check_validation(config)
    changes: dict[str, Any] = {}
    if config.model.unroll == "auto":  # as on an accelerator, on fake CPU devices, too
        changes["unroll"] = 1
    if config.model.attention == "auto" and devices[0].platform == "gpu" and not has_cudnn():
        changes["attention"] = "xla"
    config = config.model_copy(update={"model": config.model.model_copy(update=changes)})
    setup, tokenizer = setup_for_shapes(config, devices)
    named_metric(setup.task, config.train.metric)
    plan = make_plan(setup)
    batch = plan.abstract_batch(next(plan.loader))
    plan.loader.close()
    state = plan.abstract_state()
    cost = CompiledStep(
        plan, tokenizer, batch, bytes_on_device((state.params, state.frozen)), bytes_on_device(state.opt_state), None,
        None, "", (), 3 * _forward_flops(setup, batch), None,
    )  # fmt: skip
    try:
        with quiet(), without_cache():
            # Triton's tile sizes are tried out on a GPU; without one some products have none (cuBLAS needs none).
            options = {"xla_gpu_enable_triton_gemm": False} if setup.rules.platform == "gpu" else None
            compiled = plan.step.lower(state, batch).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise RunFailure(f"the compiler gave up: {str(error).strip()[:2000]}") from error
        return replace(cost, refusal=str(error))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    return replace(
        cost,
        temporaries=memory.temp_size_in_bytes,
        peak=peak_bytes(memory),
        collectives=tuple(collectives(text)),
        cycles=cycles(text),
        text=text,
        kernels=tuple(kernels(text)),
    )


def _forward_flops(setup: Setup, batch: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Of the matrix products of a forward pass over one whole batch, attention in full included."""
    whole, loss = setup.model, setup.task.loss
    model = replace(whole, compute=replace(whole.compute, attention="xla", remat="none", unroll=1, rules=Rules()))
    micro = {key: jax.ShapeDtypeStruct(value.shape[1:], value.dtype) for key, value in batch.items()}
    turns = next(iter(batch.values())).shape[0]
    return turns * matmul_flops(lambda params, rows: loss(model.apply(params, rows, None), rows), model.shapes, micro)


@dataclass(frozen=True)
class Step:
    """How long a step takes, in seconds, and the share of the peak that it makes of the model's operations."""

    compute: float
    communication: float
    """Of all collectives but those across slices, over all links of a chip at their full speed."""
    total: float
    utilization: float


def estimate(cost: CompiledStep, chip: Chip, num_devices: int) -> Step:
    """Step time: the compiler's where it has one, else a roofline; and communication, which the compiler leaves out.

    The TPU compiler gives each instruction its cycles: their sum, as often as each runs, at the chip's clock. It gives
    none to kernels: see `flops.kernel_seconds`. For a GPU there is the time that the operations take at the chip's
    peak, a third more where layers are computed twice, and reading and writing the training state once. A collective of
    n devices moves (n - 1) / n of its bytes, an all-reduce twice that. What runs beside computation is taken to be
    hidden. The network between TPU slices is left out: its speed is not known here.
    """
    inside = [collective for collective in cost.collectives if not collective.kind.endswith(ACROSS_SLICES)]
    sent = {flag: sum(_moved(c) for c in inside if c.overlapped == flag) for flag in (False, True)}
    waiting, hidden = (sent[flag] / chip.link_bandwidth for flag in (False, True))
    if cost.cycles is not None and chip.clock is not None:
        in_kernels = sum(kernel.times * kernel_seconds(kernel, chip) for kernel in cost.kernels)
        compute = cost.cycles / chip.clock + in_kernels
    else:
        again = 1.0 if cost.plan.setup.config.model.remat in ("none", "dots") else 4 / 3
        state = 2 * (cost.params + cost.optimizer)
        compute = again * cost.model_flops / num_devices / chip.flops + state / chip.memory_bandwidth
    total = max(compute, hidden) + waiting
    return Step(compute, waiting + hidden, total, cost.model_flops / (total * num_devices * chip.flops))


def _moved(collective: Collective) -> float:
    """Bytes that one device sends in one step."""
    size = max(collective.group_size, 2)
    whole = collective.bytes * (size if collective.kind == "reduce-scatter" else 1)
    share = 1.0 if collective.kind == "collective-permute" else (size - 1) / size
    return collective.times * whole * share * (2 if collective.kind == "all-reduce" else 1)


def report(cost: CompiledStep, topology: Topology | None, number: int) -> list[str]:
    """The lines of `--dry-run --topology` and `--dry-run mesh.devices=N`."""
    plan, setup = cost.plan, cost.plan.setup
    shapes = plan.loader.shapes
    kind = f"{topology.name}, {number} x {topology.chip.name}" if topology else f"{number} fake CPU devices"
    return [
        f"model            {setup.model.family.name}, {setup.model.num_parameters:,} parameters",
        f"task             {setup.task.describe()['problem']}",
        *([f"tokenizer        {cost.tokenizer}"] if cost.tokenizer else []),
        f"devices          {kind}",
        f"attention        {setup.model.compute.attention}",
        f"mesh             {setup.rules.description}",
        f"batch            rows {list(shapes.row_counts)} x length {list(shapes.row_lengths)}, "
        f"{setup.config.train.grad_accum_steps} micro-batch(es)",
        *_memory_lines(cost, topology),
        *_collective_lines(cost.collectives),
        *_time_lines(cost, topology, number),
    ]


def _memory_lines(cost: CompiledStep, topology: Topology | None) -> list[str]:
    lines = state_lines(cost.params, cost.optimizer)
    limit = topology.chip.memory if topology else None
    if cost.peak is None or cost.temporaries is None:
        said = re.sub(r"\s+", " ", cost.refusal).strip()[:400]
        return [*lines, "peak             more than there is", f"fits             NO: {said}"]
    lines += step_lines(cost.temporaries, cost.peak)
    if limit is not None:
        share = cost.peak / limit
        lines.append(f"fits             {'yes' if share <= 1 else 'NO'}: {share:.0%} of {limit / GIB:.0f} GiB")
    return lines


def _collective_lines(found: tuple[Collective, ...]) -> list[str]:
    if not found:
        return ["collectives      none"]
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for collective in found:
        counts[collective.kind][0] += collective.times
        counts[collective.kind][1] += collective.times * collective.bytes
    lines = [
        f"{kind}: {n:,} a step, {size / GIB:.3f} GiB received per device" for kind, (n, size) in sorted(counts.items())
    ]
    return [f"{'' if i else 'collectives':16s} {line}" for i, line in enumerate(lines)]


def _time_lines(cost: CompiledStep, topology: Topology | None, number: int) -> list[str]:
    lines = [f"model FLOPs      {cost.model_flops / 1e12:,.3f} T a step (3 x the forward pass's matrix products)"]
    if topology is None or cost.peak is None:
        return lines
    step = estimate(cost, topology.chip, number)
    source = "the compiler's cycles" if cost.cycles is not None else "roofline"
    tokens = sum(math.prod(value.shape) for key, value in cost.batch.items() if key.endswith("segment_ids"))
    lines += [
        f"step time        {step.total:.4f} s, estimated: computing {step.compute:.4f} s ({source}), communicating "
        f"{step.communication:.4f} s",
        f"throughput       {tokens / step.total:,.0f} columns/s, {tokens / step.total / number:,.0f} per device",
        f"utilization      {step.utilization:.1%} of {topology.chip.flops / 1e12:,.0f} TFLOP/s",
    ]
    return lines
