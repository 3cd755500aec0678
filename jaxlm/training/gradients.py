"""The gradients of a train step: the interface, and two ways: micro-batches added up, and cached outputs."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxlm.objectives import Apply, Batch, Loss


@runtime_checkable
class Gradients(Protocol):
    """Computes the gradients of a train step; chosen when the step is built, which therefore has no branches."""

    def __call__(self, params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        """Returns (gradients of the mean loss with respect to `params`, mean loss float32 []).

        Args:
          params: pytree of the trained parameters.
          frozen: pytree of parameters that are only read (`TrainState.frozen`).
          batch: arrays [K, B, ...]: K micro-batches of B rows. The mean is over the weights of all K.
          key: key of the step's dropout masks.
        """
        ...


def accumulated_gradients(apply: Apply, loss: Loss, *, sharded: bool = False) -> Gradients:
    """Returns the gradients of a loss whose terms are independent: computed by micro-batch and added up.

    Sums of losses and of weights are added up over micro-batches and divided once, so that neither the number of
    micro-batches nor the distribution of rows among them changes the result.

    Args:
      loss: (outputs, batch) -> (sum of weighted losses, sum of weights).
      sharded: whether several devices share the work. Gradients are then divided after the backward pass, by a share
        of them on each device: a factor between the parts of a tied table's gradient would keep the compiler from
        adding these up before it adds up over devices.
    """

    def loss_sum(params: Any, frozen: Any, micro: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return loss(apply(params, frozen, micro, key), micro)

    def loss_mean(params: Any, frozen: Any, micro: Batch, key: jax.Array) -> jax.Array:
        total, weight = loss_sum(params, frozen, micro, key)
        return total / _at_least_tiny(weight)

    def gradients(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        num_micro = batch["tokens"].shape[0]
        keys = jax.random.split(key, num_micro)
        if num_micro == 1:
            micro = jax.tree.map(lambda x: x[0], dict(batch))
            if sharded:
                (value, weight), grads = jax.value_and_grad(loss_sum, has_aux=True)(params, frozen, micro, keys[0])
                weight = _at_least_tiny(weight)
                return jax.tree.map(lambda g: g / weight, grads), value / weight
            # Divided before the backward pass, which spares a pass over the gradients after it.
            mean, grads = jax.value_and_grad(loss_mean)(params, frozen, micro, keys[0])
            return grads, mean

        def accumulate(carry: Any, xs: tuple[Batch, jax.Array]) -> tuple[Any, None]:
            micro, key = xs
            (value, weight), grads = jax.value_and_grad(loss_sum, has_aux=True)(params, frozen, micro, key)
            return jax.tree.map(jnp.add, carry, (value, weight, grads)), None

        zero = jnp.zeros((), jnp.float32)
        start = (zero, zero, jax.tree.map(jnp.zeros_like, params))
        (total, weight, grads), _ = jax.lax.scan(accumulate, start, (dict(batch), keys))
        weight = _at_least_tiny(weight)
        return jax.tree.map(lambda g: g / weight, grads), total / weight

    return gradients


def cached_gradients(apply: Apply, loss: Loss, *, sharded: bool = False) -> Gradients:
    """Returns the gradients of a loss that compares the examples of a whole batch, whatever its micro-batches.

    Of several micro-batches, the outputs of all are computed first, without what a backward pass needs; then the loss
    and its gradient by the outputs; then each micro-batch again, with that gradient carried on to the parameters (Gao
    et al., 2021, arXiv:2101.06983). One more forward pass buys the memory of all micro-batches but one. Dropout draws
    the same masks in both passes.

    Args:
      loss, sharded: as in `accumulated_gradients`. `loss` is called with the examples of all micro-batches.
    """
    plain = accumulated_gradients(apply, loss, sharded=sharded)

    def gradients(params: Any, frozen: Any, batch: Batch, key: jax.Array) -> tuple[Any, jax.Array]:
        num_micro = batch["tokens"].shape[0]
        if num_micro == 1:
            return plain(params, frozen, batch, key)
        micros = dict(batch), jax.random.split(key, num_micro)
        cached = jax.lax.map(lambda xs: apply(params, frozen, *xs), micros)
        whole = jax.tree.map(_merge, dict(batch))
        (total, weight), by_outputs = jax.value_and_grad(
            lambda outputs: loss(jax.tree.map(_merge, outputs), whole), has_aux=True
        )(cached)

        def carry_on(grads: Any, xs: tuple[Any, Any]) -> tuple[Any, None]:
            (micro, micro_key), cotangent = xs
            _, backward = jax.vjp(lambda p: apply(p, frozen, micro, micro_key), params)
            return jax.tree.map(jnp.add, grads, backward(cotangent)[0]), None

        start = jax.tree.map(jnp.zeros_like, params)
        grads, _ = jax.lax.scan(carry_on, start, (micros, by_outputs))
        weight = _at_least_tiny(weight)
        return jax.tree.map(lambda g: g / weight, grads), total / weight

    return gradients


def _merge(x: jax.Array) -> jax.Array:
    """[K, B, ...] -> [B * K, ...]: rows first, so that those of a device stay there."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def _at_least_tiny(weight: jax.Array) -> jax.Array:
    return jnp.maximum(weight, jnp.finfo(jnp.float32).tiny)
