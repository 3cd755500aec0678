"""Softmax cross-entropy over a vocabulary, a few tokens at a time: [tokens, V] logits need never exist whole."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.heads import LogitFactors

WHOLE = 2**25
"""Most logits that are computed at once where the chunk is chosen here: 128 MiB of float32."""


class Terms(NamedTuple):
    """What is subtracted from and added to the log-likelihood."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the vocabulary (Szegedy et al., 2016)."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits from drifting (Chowdhery et al., 2022, section 5)."""


PLAIN = Terms()


def cross_entropy(
    factors: LogitFactors,
    labels: jax.Array,
    weights: jax.Array,
    *,
    terms: Terms = PLAIN,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of log Z - (1 - a) l_y - a mean(l) + z log(Z)^2 over tokens, and the sum of weights.

    l are the logits, Z the sum of their exponentials, y the label, a and z the `terms`. With `chunk` the gradient is
    computed together with the loss, chunk by chunk, so that the logits are multiplied out once for both.

    Args:
      factors: states [R, T, D], table [V, D], bias [V] or None.
      labels: int32 [R, T].
      weights: float32 [R, T]; no gradient flows to them.
      chunk: columns of T whose logits exist at once; None: all of them if they are at most `WHOLE` numbers.
    """
    rows, length = labels.shape
    chunk = chunk_size(rows, length, factors.table.shape[0]) if chunk is None else min(chunk, length)
    if chunk == length:
        losses = _losses(factors.logits(), labels, terms)
        return (losses * weights).sum(), weights.sum()
    return _chunked_sum(factors, labels, weights, terms, chunk), weights.sum()


def token_scores(factors: LogitFactors, labels: jax.Array, *, chunk: int | None = None) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each label, and whether it has the highest logit: float32 and bool [R, T]."""
    rows, length = labels.shape
    chunk = chunk_size(rows, length, factors.table.shape[0]) if chunk is None else min(chunk, length)

    def one(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        states, labels = part
        logits = factors._replace(states=states).logits()
        return _losses(logits, labels, PLAIN), logits.argmax(-1).astype(labels.dtype) == labels

    parts = (_cut(factors.states, chunk), _cut(labels, chunk))
    losses, correct = jax.lax.map(one, parts) if parts[1].shape[0] > 1 else _only(one, parts)
    return _join(losses, length), _join(correct, length)


def chunk_size(rows: int, length: int, vocab_size: int) -> int:
    """Columns whose logits are at most `WHOLE` numbers, at least one."""
    return max(1, min(length, WHOLE // (rows * vocab_size)))


def _losses(logits: jax.Array, labels: jax.Array, terms: Terms) -> jax.Array:
    """float32, as labels."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = log_z - (1.0 - terms.label_smoothing) * picked
    if terms.label_smoothing:
        losses = losses - terms.label_smoothing * logits.mean(-1)
    return losses + terms.z_loss * jnp.square(log_z) if terms.z_loss else losses


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked_sum(factors: LogitFactors, labels: jax.Array, weights: jax.Array, terms: Terms, chunk: int) -> jax.Array:
    """The weighted sum, without its gradient."""

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        states, labels, weights = part
        losses = _losses(factors._replace(states=states).logits(), labels, terms)
        return total + (losses * weights).sum(), None

    parts = (_cut(factors.states, chunk), _cut(labels, chunk), _cut(weights, chunk))
    return jax.lax.scan(add, jnp.zeros((), jnp.float32), parts)[0]


def _forward(factors: LogitFactors, labels: jax.Array, weights: jax.Array, terms: Terms, chunk: int) -> Any:
    """The sum, and the gradient of the factors for a cotangent of one."""
    table = factors.table.astype(factors.states.dtype)

    def add(carry: Any, part: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        total, d_table, d_bias = carry
        states, labels, weights = part
        logits = factors._replace(states=states).logits()
        losses = _losses(logits, labels, terms)
        log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        d_logits = jnp.exp(logits - log_z) * (1.0 + 2.0 * terms.z_loss * log_z)
        d_logits = d_logits - terms.label_smoothing / logits.shape[-1]
        hit = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
        d_logits = jnp.where(hit, d_logits - (1.0 - terms.label_smoothing), d_logits) * weights[..., None]
        low = d_logits.astype(states.dtype)
        d_states = jnp.einsum("rtv,vd->rtd", low, table)
        d_table = d_table + jnp.einsum("rtv,rtd->vd", low, states, preferred_element_type=jnp.float32)
        return (total + (losses * weights).sum(), d_table, d_bias + d_logits.sum((0, 1))), d_states

    vocab_size, width = factors.table.shape
    zero = lambda *shape: jnp.zeros(shape, jnp.float32)  # noqa: E731
    parts = (_cut(factors.states, chunk), _cut(labels, chunk), _cut(weights, chunk))
    (total, d_table, d_bias), d_states = jax.lax.scan(add, (zero(), zero(vocab_size, width), zero(vocab_size)), parts)
    d_states = _join(d_states, factors.states.shape[1])
    bias = None if factors.bias is None else d_bias.astype(factors.bias.dtype)
    return total, LogitFactors(d_states, d_table.astype(factors.table.dtype), bias)


def _backward(terms: Terms, chunk: int, gradient: LogitFactors, cotangent: jax.Array) -> Any:
    del terms, chunk
    return jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradient), None, None


_chunked_sum.defvjp(_forward, _backward)


def _cut(x: jax.Array, chunk: int) -> jax.Array:
    """[R, T, ...] -> [T / chunk, R, chunk, ...], filled up with zeros; R, split over devices, stays one axis."""
    rows, length = x.shape[:2]
    filled = jnp.pad(x, [(0, 0), (0, -length % chunk)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(filled.reshape(rows, -1, chunk, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]


def _only(one: Callable[[Any], Any], parts: Any) -> Any:
    """`jax.lax.map` over a single part, without a loop."""
    return jax.tree.map(lambda x: x[None], one(jax.tree.map(lambda x: x[0], parts)))
