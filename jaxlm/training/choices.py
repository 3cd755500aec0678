"""What a run chose by itself where the config says `auto` or nothing, and why: lines for log and dry run."""

from __future__ import annotations

from jaxlm.tasks.base import CorpusTask
from jaxlm.tasks.records import Metric
from jaxlm.training.plan import Plan


def describe_choices(plan: Plan, metric: Metric | None) -> list[str]:
    """Returns a line for each choice, `key: what, why`; the mesh has its own (`Rules.description`).

    Args:
      metric: what chooses the best checkpoint; None: no validation rows.
    """
    config, setup = plan.setup.config, plan.setup
    return [
        *_batches(plan),
        *_length(plan),
        *([] if metric is None or config.train.metric else [f"train.metric: {metric.name}, the first of the task's"]),
        *([] if config.model.attention != "auto" else [f"model.attention: {_attention(setup.rules.platform)}"]),
        *([] if config.model.unroll != "auto" else [f"model.unroll: {_unroll(setup.rules.platform)}"]),
    ]


def _batches(plan: Plan) -> list[str]:
    """How examples lie in rows."""
    data, shapes = plan.setup.config.data, plan.loader.shapes
    if isinstance(plan.setup.task, CorpusTask):
        return []
    rows, lengths = (" or ".join(map(str, sizes)) for sizes in (shapes.row_counts, shapes.row_lengths))
    how = "several examples to a row, kept apart by masks" if data.packing else "one example to a row"
    return [f"data.packing={str(data.packing).lower()}: {how}; {rows} rows of {lengths} tokens to a batch"]


def _length(plan: Plan) -> list[str]:
    train, epoch = plan.setup.config.train, plan.loader.steps_per_epoch
    if train.steps is not None or not epoch:
        return []
    epochs = plan.total_steps / epoch
    given = (
        "as train.epochs says" if train.epochs is not None else "since neither train.epochs nor train.steps is given"
    )
    return [f"length: {plan.total_steps} steps, {epochs:.3g} epochs of {epoch}, {given}"]


def _attention(platform: str) -> str:
    kernel = {"tpu": "splash where it can do what is asked, else xla", "gpu": "cudnn where it can, else xla"}
    return f"{kernel.get(platform, 'xla')}, on a {platform}"


def _unroll(platform: str) -> str:
    return "all layers, faster steps on a cpu" if platform == "cpu" else f"1, faster compiles on a {platform}"
