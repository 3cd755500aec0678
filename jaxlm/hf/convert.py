"""Checkpoints for other programs: export a run in HF format, or list what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, rmtree

from jaxlm.data.label_names import hf_label_names
from jaxlm.errors import UserError
from jaxlm.files import explain_write_errors
from jaxlm.hf.checkpoint import plan_checkpoint
from jaxlm.hf.hub import find_model_dir
from jaxlm.hf.opening import open_model
from jaxlm.models import Model
from jaxlm.models.base import flatten


def export_run(run: str, target: Path) -> None:
    """Copies a finished run's exported model; Transformers loads the directory as it is.

    The target appears whole or not at all.

    Raises:
      UserError: the run has no exported model, or the target is a directory with other things in it.
      RunFailure: the copy cannot be written.
    """
    source = find_model_dir(run, key="convert export")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"convert export: {target} exists and is not empty; name a new directory")
    target = target.absolute()
    partial = target.with_name(f".{target.name}.partial")
    with explain_write_errors(target):
        rmtree(partial, ignore_errors=True)  # of an export that was killed
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            copytree(source, partial)
            if target.exists():
                target.rmdir()
            partial.rename(target)
        finally:
            rmtree(partial, ignore_errors=True)


def inspect(name: str) -> str:
    """Describes a checkpoint: family, sizes, labels, and each parameter with the tensors it is read from."""
    checkpoint = open_model(name, key="convert inspect")
    head = checkpoint.head or next(iter(checkpoint.family.heads))
    outputs, labels = 0, None
    if checkpoint.head is not None and checkpoint.family.heads[head].label_params:
        labels, named = (hf_label_names(checkpoint.config, placeholders=every) for every in (False, True))
        outputs = 1 if head == "multiple_choice" else len(named or ())  # a score of each candidate
    model = Model(checkpoint.family, checkpoint.model_config, head, outputs or 2)
    shapes = {path: struct.shape for path, struct in flatten(model.shapes).items()}
    plan = plan_checkpoint(checkpoint, model)
    lines = [
        f"{checkpoint.directory}: {checkpoint.family.name}, {head.replace('_', ' ')}, "
        f"{model.num_parameters:,} parameters",
        f"config: {checkpoint.model_config}",
        f"labels: {', '.join(labels) if labels else 'none named'}",
    ]
    for path, shape in shapes.items():
        source = "absent: a new head is drawn" if path in plan.missing else plan.reads[path][0].key
        lines.append(f"  {path:45s} {str(tuple(shape)):24s} {source}")
    if plan.ignored:
        lines.append(f"not used: {', '.join(plan.ignored)}")
    if plan.unread:
        lines.append(f"unknown: {', '.join(plan.unread)}")
    return "\n".join(lines)
