"""Softmax cross-entropy over a vocabulary, a few tokens at a time: [tokens, V] logits need never exist whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlm.nn.heads import FactoredLogits
from jaxlm.parallel.sharding import Rules, constrain

MAX_LOGITS = 2**25
"""Most logits that are computed at once where the chunk is chosen here: 128 MiB of float32."""


class LossTerms(NamedTuple):
    """What is subtracted from and added to the log-likelihood."""

    label_smoothing: float = 0.0
    """Share of the target spread evenly over the vocabulary (Szegedy et al., 2016)."""
    z_loss: float = 0.0
    """Weight of log(Z)^2, which keeps the logits from drifting (Chowdhery et al., 2022, section 5)."""


NO_TERMS = LossTerms()


def cross_entropy(
    factors: FactoredLogits,
    labels: jax.Array,
    weights: jax.Array,
    *,
    terms: LossTerms = NO_TERMS,
    chunk: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sum of log Z - (1 - a) l_y - a mean(l) + z log(Z)^2 over tokens, and the sum of weights.

    l are the logits, Z the sum of their exponentials, y the label, a and z the `terms`. With `chunk` the gradient is
    computed together with the loss, chunk by chunk, so that the logits are multiplied out once for both.

    Args:
      factors: states [R, T, D], table [V, D], bias [V] or None.
      labels: int32 [R, T].
      weights: float32 [R, T]; no gradient flows to them.
      chunk: columns of T whose logits exist at once; None: all of them if they are at most `MAX_LOGITS` numbers.
    """
    cut = Chunking.of(factors, labels.shape, chunk)
    if cut.whole:
        losses = _losses(factors.logits(), labels, terms)
        return (losses * weights).sum(), weights.sum()
    return _chunked_sum(factors, labels, weights, terms, cut), weights.sum()


def token_scores(
    factors: FactoredLogits, labels: jax.Array, *, chunk: int | None = None
) -> tuple[jax.Array, jax.Array]:
    """Negative log-likelihood of each label, and whether it has the highest logit: float32 and bool [R, T]."""
    cut = Chunking.of(factors, labels.shape, chunk)
    rules = factors.rules

    def one(labels: jax.Array, logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _losses(logits, labels, NO_TERMS), logits.argmax(-1).astype(labels.dtype) == labels

    if cut.whole:
        return one(labels, factors.logits())
    table = factors.gathered()
    parts = (cut(factors.states, rules), cut(labels, rules))
    scores = jax.lax.map(lambda part: one(part[1], _logits(part[0], table, factors.bias, rules)), parts)
    return cut.join(scores[0]), cut.join(scores[1])


class Chunking(NamedTuple):
    """How rows are taken a few columns at a time: by each device from its own part of the rows and columns."""

    length: int
    """T."""
    row_shards: int
    column_shards: int
    chunk: int
    """Columns that each device takes at a time."""

    @classmethod
    def of(cls, factors: FactoredLogits, shape: Sequence[int], chunk: int | None) -> Chunking:
        """`chunk`: columns of a whole row taken at once; None: as many as give a device at most `MAX_LOGITS` logits."""
        (rows, length), rules = shape, factors.rules
        row_shards, column_shards = rules.num_batch_shards, max(1, rules.size("context"))
        row_shards = row_shards if rows % row_shards == 0 else 1
        column_shards = column_shards if length % column_shards == 0 else 1
        if chunk is None:
            vocab_size = -(-factors.table.shape[0] // max(1, rules.size("tensor")))
            chunk = chunk_size(rows // row_shards, length // column_shards, vocab_size)
        else:
            chunk = -(-min(chunk, length) // column_shards)
        return cls(length, row_shards, column_shards, chunk)

    @property
    def whole(self) -> bool:
        return self.chunk * self.column_shards >= self.length

    def __call__(self, x: jax.Array, rules: Rules) -> jax.Array:
        """[R, T, ...] -> [turns, row shards, R / row shards, column shards, chunk, ...], filled up with zeros."""
        rows, columns, rest = x.shape[0], self.length // self.column_shards, x.shape[2:]
        x = x.reshape(self.row_shards, rows // self.row_shards, self.column_shards, columns, *rest)
        x = jnp.pad(x, [(0, 0)] * 3 + [(0, -columns % self.chunk)] + [(0, 0)] * len(rest))
        x = jnp.moveaxis(x.reshape(*x.shape[:3], -1, self.chunk, *rest), 3, 0)
        return constrain(x, (None, "batch", None, "length", None, *(None,) * len(rest)), rules)

    def join(self, x: jax.Array) -> jax.Array:
        """The inverse."""
        columns, rest = self.length // self.column_shards, x.shape[5:]
        x = jnp.moveaxis(x, 0, 3)
        x = x.reshape(*x.shape[:3], -1, *rest)[:, :, :, :columns]
        return x.reshape(-1, self.length, *rest)


def chunk_size(rows: int, length: int, vocab_size: int) -> int:
    """Columns whose logits are at most `MAX_LOGITS` numbers, at least one."""
    return max(1, min(length, MAX_LOGITS // (rows * vocab_size)))


def _logits(states: jax.Array, table: jax.Array, bias: jax.Array | None, rules: Rules) -> jax.Array:
    """float32 [row shards, R, column shards, T, V] of one turn."""
    product = jnp.einsum("brctd,vd->brctv", states, table, preferred_element_type=jnp.float32)
    if bias is not None:
        product = product + bias.reshape((1,) * (product.ndim - 1) + (-1,))
    return constrain(product, ("batch", None, "length", None, "act_vocab"), rules)


def _losses(logits: jax.Array, labels: jax.Array, terms: LossTerms) -> jax.Array:
    """float32, as labels."""
    log_z = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = log_z - (1.0 - terms.label_smoothing) * picked
    if terms.label_smoothing:
        losses = losses - terms.label_smoothing * logits.mean(-1)
    return losses + terms.z_loss * jnp.square(log_z) if terms.z_loss else losses


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _chunked_sum(
    factors: FactoredLogits, labels: jax.Array, weights: jax.Array, terms: LossTerms, cut: Chunking
) -> jax.Array:
    """The weighted sum, without its gradient."""
    rules, table = factors.rules, factors.gathered()

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        states, labels, weights = part
        losses = _losses(_logits(states, table, factors.bias, rules), labels, terms)
        return total + (losses * weights).sum((1, 3)), None

    start = jnp.zeros((cut.row_shards, cut.column_shards), jnp.float32)
    parts = (cut(factors.states, rules), cut(labels, rules), cut(weights, rules))
    return jax.lax.scan(add, start, parts)[0].sum()


def _forward(factors: FactoredLogits, labels: jax.Array, weights: jax.Array, terms: LossTerms, cut: Chunking) -> Any:
    """The sum, and the gradient of the factors for a cotangent of one.

    Each device adds up its own rows' and columns' part of the gradients over the turns; the parts meet once, after.
    """
    rules, table = factors.rules, factors.gathered()

    def add(carry: Any, part: tuple[jax.Array, jax.Array, jax.Array]) -> Any:
        total, d_table, d_bias = carry
        states, labels, weights = part
        logits = _logits(states, table, factors.bias, rules)
        losses = _losses(logits, labels, terms)
        log_z = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        d_logits = jnp.exp(logits - log_z) * (1.0 + 2.0 * terms.z_loss * log_z)
        d_logits = d_logits - terms.label_smoothing / logits.shape[-1]
        hit = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1) == labels[..., None]
        d_logits = jnp.where(hit, d_logits - (1.0 - terms.label_smoothing), d_logits) * weights[..., None]
        low = d_logits.astype(states.dtype)
        d_states = jnp.einsum("brctv,vd->brctd", low, table)
        d_states = constrain(d_states, ("batch", None, "length", None, None), rules)
        d_table = d_table + jnp.einsum("brctv,brctd->bcvd", low, states, preferred_element_type=jnp.float32)
        d_table = constrain(d_table, ("batch", "length", "vocab", None), rules)
        d_bias = constrain(d_bias + d_logits.sum((1, 3)), ("batch", "length", "vocab"), rules)
        return (total + (losses * weights).sum((1, 3)), d_table, d_bias), d_states

    vocab_size, width = factors.table.shape
    zero = lambda *shape: jnp.zeros((cut.row_shards, cut.column_shards, *shape), jnp.float32)  # noqa: E731
    parts = (cut(factors.states, rules), cut(labels, rules), cut(weights, rules))
    (total, d_table, d_bias), d_states = jax.lax.scan(add, (zero(), zero(vocab_size, width), zero(vocab_size)), parts)
    d_table = constrain(d_table.sum((0, 1)).astype(factors.table.dtype), ("vocab", "embed"), rules)
    d_bias = None if factors.bias is None else d_bias.sum((0, 1)).astype(factors.bias.dtype)
    return total.sum(), replace(factors, states=cut.join(d_states), table=d_table, bias=d_bias)


def _backward(terms: LossTerms, cut: Chunking, gradient: FactoredLogits, cotangent: jax.Array) -> Any:
    del terms, cut
    return jax.tree.map(lambda g: g * cotangent.astype(g.dtype), gradient), None, None


_chunked_sum.defvjp(_forward, _backward)
