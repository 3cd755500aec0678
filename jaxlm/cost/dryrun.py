"""`--dry-run`: everything a run does before its first step, one step compiled, and what it will cost."""

from __future__ import annotations

from typing import Any

from jaxlm.config.loading import dump_config
from jaxlm.config.schema import Config
from jaxlm.cost.memory import peak_bytes, state_lines, step_lines
from jaxlm.report.format import format_counts
from jaxlm.run.trackers import check_trackers
from jaxlm.setup.setup import Setup, make_setup
from jaxlm.training.choices import describe_choices
from jaxlm.training.optimizer import describe_rates
from jaxlm.training.plan import Plan, make_plan
from jaxlm.training.run import check_validation, select_metric
from jaxlm.training.stages import scratch_config
from jaxlm.training.state import bytes_on_device


def dry_run(config: Config) -> str:
    """Resolves, loads, builds and compiles one step; returns the report. Nothing is written but tokenized corpora.

    Raises:
      UserError: as the run itself would.
    """
    check_trackers(config.logging.trackers)
    check_validation(config)
    if config.train.scratch_baseline:
        scratch_config(config)
    setup = make_setup(config)
    metric = select_metric(setup)
    params, initialized = setup.init_params()
    del params  # read once, so that a damaged checkpoint shows now
    plan = make_plan(setup)
    batch = next(plan.loader)
    plan.loader.close()
    compiled = plan.step.lower(plan.abstract_state(), plan.to_device(batch)).compile()
    shapes = plan.loader.shapes
    lines = [
        dump_config(config).rstrip(),
        "",
        f"model            {setup.model.family.name}, {setup.model.num_parameters:,} parameters"
        + (f", new: {', '.join(initialized)}" if initialized else ""),
        *_frozen(setup),
        *([f"learning rates   {rates}"] if (rates := describe_rates(setup)) else []),
        f"task             {_task(setup)}",
        f"mesh             {setup.rules.description}",
        *(f"{name:16s} {format_counts(split.describe())}" for name, split in setup.datasets.items()),
        f"steps            {plan.total_steps} ({plan.loader.steps_per_epoch or 'unknown'} per epoch)",
        f"batch shapes     rows {list(shapes.row_counts)} x length {list(shapes.row_lengths)}, "
        f"{shapes.slots} examples a row at most, padding {plan.loader.padding_share:.1%}",
        *(f"chosen           {line}" for line in describe_choices(plan, metric)),
        *_memory(plan, compiled),
        *_flops(compiled),
        "",
        *setup.task.show(batch),
    ]
    return "\n".join(lines)


def _task(setup: Setup) -> str:
    described = setup.task.describe()
    names = described["label_names"]
    listed = f": {', '.join(names[:12])}{' ...' if len(names) > 12 else ''}" if names else ""
    return described["problem"] + listed


def _frozen(setup: Setup) -> list[str]:
    trained, frozen = setup.split.count(setup.shapes)
    return [f"trained          {trained:,} parameters; frozen {frozen:,}"] if frozen else []


def _memory(plan: Plan, compiled: Any) -> list[str]:
    """Memory of one device: exact for what stays between steps, the compiler's own figures for the rest."""
    state, offload = plan.abstract_state(), plan.setup.config.optimizer.offload
    lines = state_lines(
        bytes_on_device((state.params, state.frozen)), bytes_on_device(state.opt_state), offload=offload
    )
    analysis = compiled.memory_analysis()
    return lines if analysis is None else lines + step_lines(analysis.temp_size_in_bytes, peak_bytes(analysis))


def _flops(compiled: Any) -> list[str]:
    analysis = compiled.cost_analysis()
    flops = (analysis or {}).get("flops")
    return [f"FLOPs per step   {flops / 1e9:,.1f} G per device (compiler's count)"] if flops else []
