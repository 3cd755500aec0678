"""The jitted steps: one optimizer step over micro-batches, and one forward pass for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxlm.inference.evaluator import Apply
from jaxlm.objectives import Batch, Loss
from jaxlm.training.state import TrainState


def make_train_step(
    apply: Apply, loss: Loss, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the step function, to be jitted with the state donated.

    Args:
      apply: (params, batch, key) -> outputs.
      loss: (outputs, batch) -> (sum, weight sum).
    Returns:
      (state, batch) -> (state, metrics). Batch arrays are [K, R, ...]: K micro-batches, whose sums are added up and
      divided once by the summed weights, so that neither K nor the rows' distribution changes the result.
    """

    def loss_sum(params: Any, micro: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss(apply(params, micro, key), micro)

    def loss_mean(params: Any, micro: Batch, key: jax.Array) -> jax.Array:
        total, weight = loss_sum(params, micro, key)
        return total / _at_least_tiny(weight)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        num_micro = batch["tokens"].shape[0]
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), num_micro)

        def accumulate(carry, xs):
            micro, key = xs
            (value, weight), grads = jax.value_and_grad(loss_sum, has_aux=True)(state.params, micro, key)
            return jax.tree.map(jnp.add, carry, (value, weight, grads)), None

        if num_micro == 1:  # divided before the backward pass, which spares a pass over the gradients after it
            micro = jax.tree.map(lambda x: x[0], dict(batch))
            mean, grads = jax.value_and_grad(loss_mean)(state.params, micro, keys[0])
        else:
            zero = jnp.zeros((), jnp.float32)
            start = (zero, zero, jax.tree.map(jnp.zeros_like, state.params))
            (total, weight, grads), _ = jax.lax.scan(accumulate, start, (dict(batch), keys))
            weight = _at_least_tiny(weight)
            mean, grads = total / weight, jax.tree.map(lambda g: g / weight, grads)

        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {
            "loss": mean,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return step


def _at_least_tiny(weight: jax.Array) -> jax.Array:
    return jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
