"""Builds the optimizer of a run: the update rule, and what holds, scales and averages parameters around it."""

from __future__ import annotations

import logging
from typing import Any

import optax

from jaxlm.errors import UserError
from jaxlm.models.freezing import like
from jaxlm.models.places import heights
from jaxlm.optim import make_optimizer
from jaxlm.optim.average import averaged
from jaxlm.optim.gates import hold, unfreeze
from jaxlm.setup.setup import Setup
from jaxlm.training.state import offloaded

log = logging.getLogger("jaxlm")


def build_optimizer(setup: Setup, trained: Any, total_steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of the trained parameters.

    Args:
      trained: their shapes.
    Raises:
      UserError: a setting that goes by layers, of a model whose layers share their parameters, or beside adapters, or
        with nothing below the head that is trained.
    """
    config, split = setup.config, setup.split
    decay = config.optimizer.layer_decay
    rates = None
    if decay != 1:
        rates = like(trained, {name: _powers(decay, h) for name, h in _heights(setup, "optimizer.layer_decay")}, 1.0)
    optimizer = make_optimizer(config.optimizer, total_steps, split.split(setup.axes)[0], rates)
    optimizer = hold(optimizer, like(trained, split.layers, True))
    if (every := config.train.unfreeze_every) is not None:
        levels = dict(_heights(setup, "train.unfreeze_every"))
        _say_what_stays(every, total_steps, max(max(_each(h)) for n, h in levels.items() if n not in split.whole))
        optimizer = unfreeze(optimizer, like(trained, levels, 0), every)
    if config.train.ema is not None:
        optimizer = averaged(optimizer, config.train.ema)
    return offloaded(optimizer, trained, setup.rules) if config.optimizer.offload else optimizer


def describe_rates(setup: Setup) -> str:
    """Says the peak learning rate of each layer, from the head down; "" where all are the same."""
    decay, peak = setup.config.optimizer.layer_decay, setup.config.optimizer.learning_rate
    if decay == 1:
        return ""
    lowest = max(h for _, height in _heights(setup, "optimizer.layer_decay") for h in _each(height))
    rates = [f"{peak * decay**h:.3g}" for h in range(lowest + 1)]
    return f"head {rates[0]}, layers from the top {' '.join(rates[1:-1])}, embeddings {rates[-1]}"


def _heights(setup: Setup, key: str) -> list[tuple[str, int | tuple[int, ...]]]:
    if setup.adapters is not None:
        raise UserError(f"{key}: beside adapters, all layers stay frozen; leave it out")
    found = heights(setup.model, key)
    if not any(max(_each(height)) for name, height in found.items() if name not in setup.split.whole):
        raise UserError(f"{key}: nothing below the head is trained (model.freeze); leave it out")
    return list(found.items())


def _say_what_stays(every: int, steps: int, highest: int) -> None:
    """Warns of layers whose turn never comes."""
    opened = (steps - 1) // every
    if opened < highest:
        log.warning(
            "train.unfreeze_every=%d: the run has %d steps, and %s; all of the model would take more than %d steps",
            every, steps, f"only the top {opened} layers and the head are trained" if opened else
            "the head alone is trained", every * highest,
        )  # fmt: skip


def _each(height: int | tuple[int, ...]) -> tuple[int, ...]:
    return height if isinstance(height, tuple) else (height,)


def _powers(decay: float, height: int | tuple[int, ...]) -> float | tuple[float, ...]:
    return tuple(decay**h for h in height) if isinstance(height, tuple) else decay**height
