"""The optimizer: update rule, schedule, decay mask and clipping as one optax transformation (docs/optimizers.md)."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.errors import UserError
from jaxlm.optim.adafactor import scale_by_adafactor
from jaxlm.optim.config import OptimizerConfig
from jaxlm.optim.gates import along
from jaxlm.optim.moments import bfloat16_moments
from jaxlm.optim.muon import scale_by_muon_or


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Returns step -> learning rate: linear warm-up from 0, then linear or cosine decay to `final`, or constant.

    The decay spans the steps after warm-up and reaches its end at `total_steps`. A fraction of a step of warm-up counts
    as a whole one, as in Transformers' Trainer.

    Raises:
      UserError: the warm-up is longer than the run.
    """
    warmup = math.ceil(config.warmup * total_steps) if config.warmup < 1 else math.ceil(config.warmup)
    if warmup > total_steps:
        raise UserError(
            f"optimizer.warmup={config.warmup:g}: the run has {total_steps} steps; expected at most as many, or a "
            "fraction below 1"
        )
    peak, decay_steps = config.learning_rate, max(total_steps - warmup, 1)
    after = {
        "linear": lambda: optax.linear_schedule(peak, peak * config.end_factor, decay_steps),
        "cosine": lambda: optax.cosine_decay_schedule(peak, decay_steps, alpha=config.end_factor),
        "constant": lambda: optax.constant_schedule(peak),
    }[config.schedule]()
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def decay_mask(params: Any) -> Any:
    """True for parameters that weight decay applies to: all but biases and norm scales."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not str(path[-1].key).endswith(("_bias", "_scale")), params)


def make_optimizer(
    config: OptimizerConfig, total_steps: int, axes: Any, rates: Any = None
) -> optax.GradientTransformation:
    """Returns clipping by the global norm, L2, the update rule, decoupled weight decay and the learning rate, in a
    chain.

    Args:
      axes: tree of the parameters' logical axes (`Model.axes`), by which matrices are told apart.
      rates: tree like the parameters of float [] or, of stacked layers, [L]: what the learning rate is multiplied by;
        None: 1.
    """
    store = bfloat16_moments if config.moment_dtype == "bfloat16" else lambda rule: rule
    adam = store(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps))
    rule = {
        "adamw": lambda: adam,
        "adafactor": lambda: scale_by_adafactor(axes),
        "muon": lambda: scale_by_muon_or(adam, axes, momentum=config.momentum, store=store),
    }[config.name]()
    chained = optax.chain(
        rule,
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(make_schedule(config, total_steps)),
    )
    if rates is not None:
        scale = optax.stateless(lambda updates, _: jax.tree.map(_scale, updates, rates))
        chained = optax.chain(chained, scale)
    if config.l2:
        chained = optax.chain(optax.add_decayed_weights(config.l2, decay_mask), chained)
    return chained if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), chained)


def _scale(update: jax.Array, rate: Any) -> jax.Array:
    return update * along(jnp.asarray(rate, update.dtype), update)
