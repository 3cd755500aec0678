"""Heads: modules from a trunk's states to float32 outputs.

Shape letters: B rows, T row length, S slots, Q either of both, D embed, C outputs, V vocab, E width of the token table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig, Key, activation, dense, normal, param, split_key
from jaxlm.nn.norms import layer_norm
from jaxlm.nn.products import transposed_half_product
from jaxlm.parallel.sharding import Rules, constrain

Batch = Mapping[str, jax.Array]
Build = Callable[[Any, ComputeConfig, int], nn.Module]
"""(config, compute, number of outputs) -> module; see `models.base.Head`."""


@partial(jax.tree_util.register_dataclass, data_fields=("states", "table", "bias"), meta_fields=("rules", "half"))
@dataclass(frozen=True)
class FactoredLogits:
    """The logits of a language model, not yet multiplied out: states [..., D], table [V, D] and bias [V].

    A loss needs them a few tokens at a time only (`objectives.cross_entropy`): whole, they are the largest array. The
    vocabulary is split over the mesh axis `tensor`.
    """

    states: Any
    table: Any
    bias: Any = None
    rules: Rules = Rules()
    half: bool = False
    """On a single CPU device: the product's operands are rounded to bfloat16 (`nn.products`)."""

    def gathered(self) -> jax.Array:
        """The table in the states' dtype, its rows whole: what is split over fsdp and context is gathered."""
        return constrain(self.table.astype(self.states.dtype), ("vocab", None), self.rules)

    def logits(self) -> jax.Array:
        """float32 [..., V], the product in the states' dtype."""
        if self.half:
            flat = transposed_half_product(self.states.reshape(-1, self.states.shape[-1]), self.gathered())
            product = flat.reshape(*self.states.shape[:-1], -1)
        else:
            axes = (((self.states.ndim - 1,), (1,)), ((), ()))
            product = jax.lax.dot_general(self.states, self.gathered(), axes, preferred_element_type=jnp.float32)
        if self.bias is not None:
            product = product + self.bias.reshape((1,) * (product.ndim - 1) + (-1,))
        if product.ndim != 3:
            return product
        return constrain(product, ("batch", "length", "act_vocab"), self.rules)


class PooledClassifier(nn.Module):
    """[dropout] dense, activation, dropout, dense over one state per example.

    In HF's terms: BERT's pooler and classifier, RoBERTa's and ELECTRA's classification head, DistilBERT's
    pre_classifier and classifier.
    """

    num_outputs: int
    activation: str
    dropout: float
    dropout_before: bool
    config: Any
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x_BSD: Float[Array, "B S D"], batch: Batch, key: Key = None) -> Float[Array, "B S C"]:
        """Returns float32 outputs."""
        del batch
        embed_dim, activations, rules = x_BSD.shape[-1], ("batch", "slots", "act_embed"), self.compute.rules
        before, after = split_key(key, 2)
        x = dropout(x_BSD, self.dropout, before) if self.dropout_before else x_BSD
        x = constrain(x, activations, rules)
        x = constrain(dense(self, "dense", x, (embed_dim, embed_dim), ("embed", "embed_in")), activations, rules)
        x = dropout(activation(self.activation)(x), self.dropout, after)
        outputs = dense(self, "out", x, (embed_dim, self.num_outputs), ("embed", "classes"))
        return constrain(outputs.astype(jnp.float32), ("batch", "slots", None), rules)


def pooled_classifier(activation: str, *, dropout_before: bool) -> Build:
    """Returns the `build` of a head; dropout at the config's `classifier_dropout`, else at its `dropout`."""

    def build(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
        return PooledClassifier(num_outputs, activation, _dropout(config), dropout_before, config, compute)

    return build


class LinearClassifier(nn.Module):
    """Dropout and one dense map of each state.

    In HF's terms: `score` of decoders, over one state per example; `classifier` of token classifiers and
    `qa_outputs`, over all tokens.

    Attributes:
      axis: logical axis of the states: "slots" or "length".
    """

    num_outputs: int
    dropout: float
    bias: bool
    axis: str
    config: Any
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x_BQD: Float[Array, "B Q D"], batch: Batch, key: Key = None) -> Float[Array, "B Q C"]:
        """Returns float32 outputs."""
        del batch
        x = constrain(dropout(x_BQD, self.dropout, key), ("batch", self.axis, "act_embed"), self.compute.rules)
        outputs = dense(self, "out", x, (x.shape[-1], self.num_outputs), ("embed", "classes"), bias=self.bias)
        return constrain(outputs.astype(jnp.float32), ("batch", self.axis, None), self.compute.rules)


def linear_classifier(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """A `Head.build`: classes of an example, without bias."""
    return LinearClassifier(num_outputs, _dropout(config), False, "slots", config, compute)


def token_classifier(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """A `Head.build`: classes of every token."""
    return LinearClassifier(num_outputs, _dropout(config), True, "length", config, compute)


def span_ends(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """A `Head.build`: whether an answer begins, and whether it ends, at every token; without dropout."""
    return LinearClassifier(num_outputs, 0.0, True, "length", config, compute)


class Pooling(nn.Module):
    """One vector for each example: the state at its slot's position, or the mean of its tokens' states."""

    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"], batch: Batch, key: Key = None) -> Float[Array, "B S D"]:
        """Returns float32 vectors.

        Args:
          x: states at the slots where the batch has `slot_positions`, else of all tokens.
          batch: without `slot_positions`, `segment_ids` [B, T] and `weights` [B, S].
        """
        del key
        x = x.astype(jnp.float32)
        if "slot_positions" not in batch:
            slots = 1 + jnp.arange(batch["weights"].shape[1], dtype=jnp.int32)
            member_BST = (batch["segment_ids"][:, None, :] == slots[None, :, None]).astype(jnp.float32)
            total = jnp.einsum("bst,btd->bsd", member_BST, x, precision=jax.lax.Precision.HIGHEST)
            x = total / jnp.maximum(member_BST.sum(axis=2)[:, :, None], 1)
        return constrain(x, ("batch", "slots", None), self.compute.rules)


def pooling(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """A `Head.build`: the vector of an example; it has no parameters."""
    del config, num_outputs
    return Pooling(compute)


def _dropout(config: Any) -> float:
    return config.dropout if config.classifier_dropout is None else config.classifier_dropout


class LanguageModelHead(nn.Module):
    """Logits over the vocabulary by the token table, or by a table of its own."""

    vocab_size: int
    tied: bool
    init_std: float
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B Q D"], batch: Batch, key: Key = None, table: Float[Array, "V D"] | None = None
    ) -> FactoredLogits:
        del batch, key
        if not self.tied:
            shape, axes = (self.vocab_size, x.shape[-1]), ("vocab", "embed")
            table = param(self, "unembed", normal(self.init_std), shape, axes)
        return FactoredLogits(x, table, None, self.compute.rules, self.compute.half_products)


def causal_lm(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """A `Head.build`: the next token, by the token table where the config says `tied`."""
    del num_outputs
    return LanguageModelHead(config.vocab_size, config.tied, config.init_std, compute)


class MaskedLanguageModelHead(nn.Module):
    """Dense, activation, norm, then the token table and a bias: HF's `cls.predictions` and `lm_head` of encoders.

    Where the config does not tie it to the token table, it has a table of its own.
    """

    activation: str
    norm_eps: float
    config: Any
    compute: ComputeConfig
    tied: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"], batch: Batch, key: Key, table: Float[Array, "V E"]) -> FactoredLogits:
        del batch, key
        x = dense(self, "transform", x, (x.shape[-1], table.shape[1]), ("embed", "embed_in"))
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        x = layer_norm(self, "transform_norm", activation(self.activation)(x), self.norm_eps)
        name = "vocab_bias"
        if not self.config.tied:
            table = param(self, "unembed", normal(self.config.init_std), table.shape, ("vocab", "embed"))
            name = "unembed_bias"
        bias = param(self, name, nn.initializers.zeros, table.shape[:1], ("vocab",))
        return FactoredLogits(x, table, bias, self.compute.rules, self.compute.half_products)


def masked_lm(*, activation: str | None = None, norm_eps: float | None = None) -> Build:
    """Returns the `build` of a head; what is not given is the config's `activation` and `norm_eps`."""

    def build(config: Any, compute: ComputeConfig, num_outputs: int) -> nn.Module:
        del num_outputs
        act = config.activation if activation is None else activation
        eps = config.norm_eps if norm_eps is None else norm_eps
        return MaskedLanguageModelHead(act, eps, config, compute)

    return build
