"""The train step: one update of the parameters by one batch."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxlm.objectives import Batch
from jaxlm.training.gradients import Gradients
from jaxlm.training.state import TrainState


def make_train_step(
    gradients: Gradients, optimizer: optax.GradientTransformation, schedule: optax.Schedule
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the step function, to be jitted with the state donated.

    Args:
      gradients: computes loss and gradients of a batch.
      schedule: the optimizer's learning rate by step, for the metrics.
    Returns:
      (state, batch) -> (new state, metrics): the arrays of `batch` are [K, B, ...], K micro-batches of B rows; the
      metrics are float32 []: loss, grad_norm, learning_rate, and nonfinite, how many of the new parameters are NaN or
      infinite.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(state.key, state.step)
        grads, loss = gradients(state.params, state.frozen, batch, key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "nonfinite": jnp.asarray(optax.tree.sum(jax.tree.map(_count_nonfinite, params))),
        }
        return state._replace(step=state.step + 1, params=params, opt_state=opt_state), metrics

    return step


def _count_nonfinite(x: jax.Array) -> jax.Array:
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.float32)
