"""ModernBERT (Warner et al., 2024, arXiv:2412.13663): rotary positions, local and global attention in turn, gated MLPs,
norms before the layers, no biases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.nn.attention import Mask, attend
from jaxlm.nn.dropout import dropout
from jaxlm.nn.heads import FactoredLogits
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    activation,
    dense,
    embedding_lookup,
    embedding_table,
    normal,
    param,
    shard_heads,
    split_key,
    take_columns,
)
from jaxlm.nn.norms import layer_norm, normalize
from jaxlm.nn.rotary import apply_rope, plain_rope_frequencies
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack
from jaxlm.parallel.sharding import constrain

POOLING = ("cls", "mean")
EVERY = 3


@dataclass(frozen=True)
class ModernBertConfig:
    vocab_size: int = 50368
    num_layers: int = 22
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 1152
    max_positions: int = 8192
    activation: str = "gelu"
    norm_eps: float = 1e-5
    local_attention: int = 128
    """A token of a local layer reads half as many tokens before and after itself."""
    windowed_layers: tuple[bool, ...] | None = None
    """Layers that are local; absent: all but every third, from the first on."""
    rope_theta: float = 160000.0
    """Of global layers."""
    local_rope_theta: float = 10000.0
    embed_dropout: float = 0.0
    dropout: float = 0.0
    """Of the MLP's inner states."""
    attention_dropout: float = 0.0
    """Of the attention probabilities and of attention's output."""
    classifier_dropout: float = 0.0
    classifier_activation: str = "gelu"
    """Of every head's."""
    pooling: str = "mean"
    """What a classifier reads of an example: "cls", its first token, or the "mean" of all."""
    init_std: float = 0.02
    pad_id: int = 50283
    tied: bool = True
    """Logits of masked language modelling by the token table."""

    def __post_init__(self) -> None:
        if isinstance(self.windowed_layers, list):  # of a YAML file; a config is hashed
            object.__setattr__(self, "windowed_layers", tuple(self.windowed_layers))
        if self.embed_dim % self.num_heads or self.embed_dim // self.num_heads % 2:
            raise UserError(
                f"model config: {self.num_heads} attention heads: expected heads of an even size, for rotary "
                f"positions, that divide the width {self.embed_dim}"
            )
        if self.pooling not in POOLING:
            known = ", ".join(POOLING)
            raise UserError(f"model config: pooling={self.pooling!r} is not supported; expected one of {known}")
        if self.windowed_layers is not None and len(self.windowed_layers) != self.num_layers:
            found = len(self.windowed_layers)
            raise UserError(f"model config: windowed_layers says it of {found} layers, the model has {self.num_layers}")

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """For each layer, whether it is local."""
        return layer_pattern(self.num_layers) if self.windowed_layers is None else self.windowed_layers

    @property
    def residual_std(self) -> float:
        """Initial standard deviation of what adds to the states."""
        return self.init_std / math.sqrt(2 * self.num_layers)


def layer_pattern(num_layers: int, every: int = EVERY) -> tuple[bool, ...]:
    return tuple(bool(i % every) for i in range(num_layers))


class Block(nn.Module):
    """x + attention of its norm, x + gated MLP of its norm; the first layer's attention reads x itself."""

    config: ModernBertConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask: Mask,
        norm_D: Float[Array, "D"],
        first: Bool[Array, ""],
        key: Key = None,
        slots_BQ: Int[Array, "B Q"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Returns the new states, at `slots` alone where given.

        Args:
          mask: its `windowed` says whether the layer is local.
          norm_D: scale of the norm before attention.
          first: there is no such norm.
        """
        c, rules = self.config, self.compute.rules
        D, N, H = c.embed_dim, c.num_heads, c.embed_dim // c.num_heads
        activations = ("batch", "length", "act_embed")
        attention_key, output_key, mlp_key = split_key(key, 3)
        linear, residual = partial(dense, self, bias=False), normal(c.residual_std)

        y = jnp.where(first, x_BTD, normalize(x_BTD, norm_D, None, c.norm_eps))
        qkv = linear("qkv", constrain(y, activations, rules), (D, 3, N, H), ("embed", "qkv", "heads", "head_dim"))
        q, k, v = (qkv[:, :, i] for i in range(3))
        frequencies = plain_rope_frequencies(c.rope_theta, H)
        if mask.windowed is not None:
            frequencies = jnp.where(mask.windowed, plain_rope_frequencies(c.local_rope_theta, H), frequencies)
        q, k = (apply_rope(x, positions_BT, frequencies, rules) for x in (q, k))
        q, k, v = shard_heads(q, k, v, rules)
        q = take_columns(q, slots_BQ)
        y = attend(q, k, v, mask.at(slots_BQ), self.compute, dropout_rate=c.attention_dropout, key=attention_key)
        y = linear("o", y, (N, H, D), ("heads", "head_dim", "embed"), contract=2, init=residual)
        x = take_columns(x_BTD, slots_BQ) + dropout(y, c.attention_dropout, output_key)
        x = constrain(x, activations, rules)

        y = layer_norm(self, "mlp_norm", x, c.norm_eps, bias=False)
        both = linear("gate_up", y, (D, 2, c.mlp_dim), ("embed", "gates", "mlp"))
        gate, up = (constrain(both[:, :, i], ("batch", "length", "act_mlp"), rules) for i in range(2))
        y = dropout(activation(c.activation)(gate) * up, c.dropout, mlp_key)
        y = linear("down", y, (c.mlp_dim, D), ("mlp", "embed"), init=residual)
        return constrain(x + y, activations, rules)


class ModernBertTrunk(nn.Module):
    config: ModernBertConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.tokens = embedding_table(self, "tokens", self.config.vocab_size, self.config.embed_dim, "vocab")

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        slot_positions: Int[Array, "B S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B Q D"]:
        """Returns the normalized states, at the slots alone where given. Token types are not read."""
        del token_types
        c, L = self.config, self.config.num_layers
        embed_key, stack_key = split_key(key, 2)
        x = embedding_lookup(self.tokens, tokens, self.compute.rules)
        x = layer_norm(self, "embed_norm", x, c.norm_eps, bias=False).astype(self.compute.dtype)
        x = constrain(dropout(x, c.embed_dropout, embed_key), ("batch", "length", "act_embed"), self.compute.rules)

        local, first = jnp.asarray(c.local_layers), jnp.arange(L) == 0
        mask = Mask(segment_ids, segment_ids, window=c.local_attention // 2 + 1)
        block, norms = Block(c, self.compute), jnp.ones((1, c.embed_dim))
        inputs = (x, positions, Mask(segment_ids, segment_ids), norms[0], first[0])
        params = declare_stack(self, "layers", init_stack(block, L, *inputs))
        if L > 1:
            rest = param(self, "attention_norm_scale", nn.initializers.ones, (L - 1, c.embed_dim), ("layers", "norm"))
            norms = jnp.concatenate([norms, rest])
        layers = {"params": params, "norm": norms, "first": first, "local": local}

        def apply(layer: Any, x: Array, k: Key, slots: Any = None) -> Any:
            own = replace(mask, windowed=layer["local"])
            return block.apply({"params": layer["params"]}, x, positions, own, layer["norm"], layer["first"], k, slots)

        last = None if slot_positions is None else partial(apply, slots=slot_positions)
        x = run_stack(apply, layers, x, stack_key, self.compute, last)
        return layer_norm(self, "final_norm", x, c.norm_eps, bias=False)


class PredictionHead(nn.Module):
    """Dense, activation, norm, dropout, dense of each state: all of ModernBERT's heads with labels.

    Attributes:
      axis: logical axis of the states: "slots" or "length".
    """

    num_outputs: int
    axis: str
    config: ModernBertConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x_BQD: Float[Array, "B Q D"], batch: Any, key: Key = None) -> Float[Array, "B Q C"]:
        """Returns float32 outputs."""
        del batch
        c, rules = self.config, self.compute.rules
        x = dropout(_transform(self, x_BQD, self.axis), c.classifier_dropout, key)
        out = normal(c.embed_dim**-0.5)
        outputs = dense(self, "out", x, (c.embed_dim, self.num_outputs), ("embed", "classes"), init=out)
        return constrain(outputs.astype(jnp.float32), ("batch", self.axis, None), rules)


class MaskedLanguageModel(nn.Module):
    """Dense, activation, norm, then the token table, or a table of its own, and a bias."""

    config: ModernBertConfig
    compute: ComputeConfig
    tied: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"], batch: Any, key: Key, table: Float[Array, "V D"]) -> FactoredLogits:
        del batch, key
        x = _transform(self, x, "length")
        if not self.config.tied:
            table = param(self, "unembed", normal(self.config.residual_std), table.shape, ("vocab", "embed"))
        bias = param(self, "vocab_bias", nn.initializers.zeros, table.shape[:1], ("vocab",))
        return FactoredLogits(x, table, bias, self.compute.rules, self.compute.half_products)


def _transform(module: Any, x: jax.Array, axis: str) -> jax.Array:
    c, D = module.config, x.shape[-1]
    x = constrain(x, ("batch", axis, "act_embed"), module.compute.rules)
    x = dense(module, "dense", x, (D, D), ("embed", "embed_in"), init=normal(c.residual_std), bias=False)
    x = constrain(x, ("batch", axis, "act_embed"), module.compute.rules)
    return layer_norm(module, "norm", activation(c.classifier_activation)(x), c.norm_eps, bias=False)


class Classifier(nn.Module):
    """Trunk and head of classes of an example, which reads its first state or the mean of its states."""

    num_outputs: int
    config: ModernBertConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.trunk = ModernBertTrunk(self.config, self.compute)
        self.head = PredictionHead(self.num_outputs, "slots", self.config, self.compute)

    def __call__(self, batch: Mapping[str, jax.Array], key: Key = None) -> Float[Array, "B S C"]:
        """Returns float32 outputs; of an empty slot, those of some finite state.

        Args:
          batch: what the trunk reads; the example of slot s is segment s + 1.
        """
        trunk_key, head_key = split_key(key, 2)
        names = ("tokens", "segment_ids", "positions")
        inputs = {name: batch[name] for name in names}
        slots = batch.get("slot_positions")
        if self.config.pooling == "cls" or slots is None:
            return self.head(self.trunk(**inputs, slot_positions=slots, key=trunk_key), batch, head_key)
        states = self.trunk(**inputs, key=trunk_key)
        return self.head(_segment_means(states, batch["segment_ids"], slots.shape[1]), batch, head_key)


def _segment_means(x_BTD: jax.Array, segment_ids_BT: jax.Array, slots: int) -> jax.Array:
    """Returns the mean state of segments 1 to `slots`, [B, S, D]; 0 where a segment has no token."""
    numbers_S = jnp.arange(1, slots + 1, dtype=segment_ids_BT.dtype)
    own_BST = (segment_ids_BT[:, None, :] == numbers_S[None, :, None]).astype(jnp.float32)
    own_BST = own_BST / jnp.maximum(own_BST.sum(-1, keepdims=True), 1.0)
    return jnp.einsum("BST,BTD->BSD", own_BST, x_BTD.astype(jnp.float32)).astype(x_BTD.dtype)
