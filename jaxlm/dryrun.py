"""`--dry-run`: everything a run does before its first step, one step compiled, and what it will cost."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np

from jaxlm.config import Config
from jaxlm.configfile import dump_config
from jaxlm.data.pack import Batch
from jaxlm.prepare import Prepared, prepare
from jaxlm.train import Plan, make_plan

GIB = 2**30


def dry_run(config: Config) -> str:
    """Resolves, loads, builds and compiles one step; returns the report. Nothing is written.

    Raises:
      UserError: as the run itself would.
    """
    prepared = prepare(config)
    params, initialised = prepared.init_params()
    del params  # read once, so that a damaged checkpoint shows now
    plan = make_plan(prepared)
    batch = next(plan.loader)
    plan.loader.close()
    compiled = plan.step.lower(plan.abstract_state(), plan.to_device(batch)).compile()
    shapes = plan.loader.shapes
    lines = [
        dump_config(config).rstrip(),
        "",
        f"model            {prepared.model.family.name}, {prepared.model.num_parameters:,} parameters"
        + (f", new: {', '.join(initialised)}" if initialised else ""),
        f"task             {prepared.task.problem}: {', '.join(prepared.task.label_names[:12])}"
        + (" ..." if len(prepared.task.label_names) > 12 else ""),
        f"rows             {', '.join(f'{name} {len(split.table.rows)}' for name, split in prepared.splits.items())}",
        f"steps            {plan.total_steps} ({plan.loader.steps_per_epoch} per epoch)",
        f"batch shapes     rows {list(shapes.row_counts)} x length {list(shapes.row_lengths)}, "
        f"{shapes.slots} examples a row at most, padding {plan.loader.padding_share:.1%}",
        *_memory(plan, compiled),
        *_flops(compiled),
        "",
        *decoded_row(prepared, batch),
    ]
    return "\n".join(lines)


def _memory(plan: Plan, compiled: Any) -> list[str]:
    """Bytes on one device: exact for what is kept between steps, the compiler's own figure for the rest."""
    state = plan.abstract_state()

    def on_device(tree: Any) -> int:
        shapes = [(leaf.sharding.shard_shape(leaf.shape), leaf.dtype) for leaf in jax.tree.leaves(tree) if leaf.ndim]
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes)

    lines = [
        f"parameters       {on_device(state.params) / GIB:.3f} GiB per device",
        f"optimizer state  {on_device(state.opt_state) / GIB:.3f} GiB per device",
    ]
    analysis = compiled.memory_analysis()
    if analysis is not None:
        peak = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
        lines += [
            f"temporaries      {analysis.temp_size_in_bytes / GIB:.3f} GiB per device (gradients and activations)",
            f"peak             {peak / GIB:.3f} GiB per device, about",
        ]
    return lines


def _flops(compiled: Any) -> list[str]:
    analysis = compiled.cost_analysis()
    flops = (analysis or {}).get("flops")
    return [f"FLOPs per step   {flops / 1e9:,.1f} G per device (compiler's count)"] if flops else []


def decoded_row(prepared: Prepared, batch: Batch) -> list[str]:
    """The first packed row, decoded, with its labels: what the model will really see."""
    tokenizer, task = prepared.tokenizer, prepared.task
    lines = ["first packed row:"]
    for slot, example in enumerate(batch["examples"][0]):
        if example < 0:
            continue
        inside = batch["segment_ids"][0] == slot + 1
        label = batch["labels"][0, slot]
        if task.problem == "multilabel":
            shown = ", ".join(name for name, on in zip(task.label_names, label, strict=True) if on) or "none"
        else:
            shown = f"{float(label):g}" if task.problem == "regression" else task.label_names[int(label)]
        text = tokenizer.decode(batch["tokens"][0][inside], skip_special_tokens=False)
        lines.append(f"  {slot + 1:3d}  row {example + 1}, {int(inside.sum())} tokens, label {shown}: {text}")
    padding = int((batch["segment_ids"][0] == 0).sum())
    return [*lines, f"       {padding} tokens of padding"]
