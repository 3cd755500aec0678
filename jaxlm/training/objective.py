"""Builds the gradients of a run's step: the task's loss, and what regularizes it around the forward pass."""

from __future__ import annotations

from typing import Any

from jaxlm.errors import UserError
from jaxlm.models.base import flatten
from jaxlm.objectives.mixup import mixup
from jaxlm.objectives.r_drop import r_drop
from jaxlm.setup.setup import Setup
from jaxlm.training.adversarial import fast_gradient
from jaxlm.training.gradients import Gradients, accumulated_gradients, cached_gradients


def build_gradients(setup: Setup, trained: Any, *, grouped: bool) -> Gradients:
    """Returns the gradients of a step.

    Args:
      trained: shapes of the trained parameters.
      grouped: the loss compares the examples of a whole batch.
    Raises:
      UserError: a setting that this task or model does not have.
    """
    train, apply, loss = setup.config.train, setup.train_apply, setup.task.loss
    if train.r_drop is not None:
        distribution = setup.task.distribution
        if distribution is None:
            kind = setup.task.describe()["problem"]
            raise UserError(
                f"train.r_drop: it compares the classes of two passes, and task {kind} has none to compare (it is for "
                "classification and tagging); leave it out"
            )
        if not _drops(setup):
            raise UserError(
                "train.r_drop: the model has no dropout, and two passes are the same; set model.dropout=0.1"
            )
        apply, loss = r_drop(apply, loss, train.r_drop, distribution)
    if train.mixup is not None:
        model = setup.model
        if model.head != "classification":
            kind = setup.task.describe()["problem"]
            raise UserError(
                f"train.mixup: it mixes the states of whole texts, which task {kind} does not answer (it is for "
                "classification); leave it out"
            )
        if model.family.heads[model.head].is_network:
            raise UserError(f"train.mixup: the head of {model.family.name} pools and answers at once; leave it out")
        apply, loss = mixup(apply, loss, train.mixup)
    sharded = setup.rules.mesh is not None and setup.rules.mesh.size > 1
    make = cached_gradients if grouped else accumulated_gradients
    gradients = make(apply, loss, sharded=sharded)
    if train.fgm is None:
        return gradients
    if "trunk/tokens" not in flatten(trained):
        raise UserError(
            "train.fgm: it moves the token embeddings along their gradient, and they are frozen; train them, or leave "
            "it out"
        )
    return fast_gradient(gradients, train.fgm)


def _drops(setup: Setup) -> bool:
    """Whether anything of the model is dropped at random while training."""
    rates = [value for name, value in vars(setup.model.config).items() if "dropout" in name]
    compute = setup.model.compute
    if compute.layer_drop > 0 or compute.adapter_dropout > 0 or setup.config.model.mixout > 0:
        return True
    return any(isinstance(rate, float) and rate > 0 for rate in rates)
