"""T5 (Raffel et al., 2020, arXiv:1910.10683), its version 1.1 (Shazeer, 2020, arXiv:2002.05202; FLAN-T5 is one) and mT5
(Xue et al., 2021, arXiv:2010.11934): the network, an encoder and a decoder with relative positions.

Shape letters: B rows, T encoder length, U decoder length, D embed, N heads, H head_dim, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.encoder_decoder import EncoderDecoderTrunk
from jaxlm.nn.attention import KVCache, Mask, attend, decoder_mask, empty_cache
from jaxlm.nn.cross_attention import Encoded, States
from jaxlm.nn.dropout import dropout
from jaxlm.nn.heads import Batch, FactoredLogits
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    activation,
    dense,
    dense_again,
    normal,
    param,
    shard_heads,
    split_key,
)
from jaxlm.nn.norms import rms_norm
from jaxlm.nn.relative_positions import relative_bias, relative_bias_at
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack
from jaxlm.parallel.sharding import constrain


@dataclass(frozen=True)
class T5Config:
    vocab_size: int = 32128
    num_layers: int = 6
    num_decoder_layers: int | None = None
    """As many as the encoder's where not given."""
    embed_dim: int = 512
    num_heads: int = 8
    head_dim: int = 64
    mlp_dim: int = 2048
    num_buckets: int = 32
    """Distances that the relative positions tell apart."""
    max_distance: int = 128
    """Beyond it, all distances are one."""
    activation: str = "relu"
    gated: bool = False
    """The MLP multiplies the activation by a second map of its input (version 1.1)."""
    tied: bool = True
    """Logits by the token table, from states scaled by embed_dim^-1/2 (version 1.0)."""
    norm_eps: float = 1e-6
    dropout: float = 0.1
    attention_dropout: float | None = None
    """Of the attention probabilities, where it is not `dropout`; HF's config.json has no place for it."""
    classifier_dropout: float = 0.0
    init_factor: float = 1.0
    eos_id: int | tuple[int, ...] = 1
    pad_id: int = 0
    decoder_start_id: int = 0
    """The token that the decoder reads first."""

    max_positions: ClassVar[int] = 1_000_000
    """No limit: far distances share a bucket."""

    def __post_init__(self) -> None:
        if self.num_buckets < 4 or self.max_distance <= self.num_buckets // 2:
            raise UserError(
                f"model config: expected at least 4 buckets of relative positions and a max_distance above half of "
                f"their number, found {self.num_buckets} and {self.max_distance}"
            )
        if self.gated and self.activation == "gelu":
            raise UserError("model config: HF's name gated-gelu means the activation 'gelu_new'; expected that")


class Block(nn.Module):
    """Attention to the stack itself, in a decoder then to the encoder, then the MLP, each added to the states.

    The states stay in float32 whatever the compute dtype: published weights drive them into the thousands, where half
    precision loses what a layer adds, or overflows.
    """

    config: T5Config
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        mask: Mask,
        bias: Float[Array, "#B N T S"] | None = None,
        context: States | Encoded | None = None,
        key: Key = None,
        cache: KVCache | None = None,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Returns the new states, and the cache with this layer's keys and values.

        Args:
          bias: of the logits of self-attention.
          context: what a decoder reads of the encoder.
          layer: the layer's number, wanted with a cache.
        """
        c, rules = self.config, self.compute.rules
        D, F, f = c.embed_dim, c.mlp_dim, c.init_factor
        self_key, cross_key, inner_key, output_key = split_key(key, 4)
        keys = split_key(self_key, 2)
        y = rms_norm(self, "norm", x_BTD, c.norm_eps)
        q, k, v = self._project("q", y), self._project("k", y), self._project("v", y)
        if cache is not None and layer is not None:
            cache, k, v = cache.put(layer, k, v)
        q, k, v = shard_heads(q, k, v, rules)
        y = attend(q, k, v, mask, self.compute, bias=bias, scale=1.0, dropout_rate=self._attention_dropout, key=keys[0])
        x = self._add(x_BTD, "o", y, keys[1])
        if context is not None:
            x = self._read(x, context, mask.query_BT, layer, cross_key)

        y = rms_norm(self, "mlp_norm", x, c.norm_eps)
        init, axes = normal(f * D**-0.5), ("embed", "mlp")
        maps = [
            dense(self, name, y, (D, F), axes, init=init, bias=False)
            for name in (("gate", "linear") if c.gated else ("up",))
        ]
        first, *second = (constrain(z, ("batch", "length", "act_mlp"), rules) for z in maps)
        y = activation(c.activation)(first)
        y = dropout(y * second[0] if c.gated else y, c.dropout, inner_key)
        y = dense(self, "down", y, (F, D), axes[::-1], init=normal(f * F**-0.5), bias=False)
        x = x + dropout(y, c.dropout, output_key).astype(x.dtype)
        return constrain(x, ("batch", "length", "act_embed"), rules), cache

    def cross_keys_values(self, context_BSD: Float[Array, "B S D"]) -> tuple[jax.Array, jax.Array]:
        """Returns what cross-attention reads of the encoder's states, [B, S, N, H] each."""
        k, v = (dense_again(self, f"cross_{name}", context_BSD, _HEADS_AXES, heads_apart=True) for name in "kv")
        return k, v

    def _read(self, x_BTD: Any, context: States | Encoded, segments_BT: Any, layer: Any, key: Key) -> Any:
        """x + attention of its norm to the encoder."""
        c = self.config
        probs_key, output_key = split_key(key, 2)
        y = rms_norm(self, "cross_norm", x_BTD, c.norm_eps)
        q = self._project("cross_q", y)
        if isinstance(context, Encoded):
            y = context.attend(q, segments_BT, layer, self.compute, scale=1.0)
            return self._add(x_BTD, "cross_o", y, output_key)
        k, v = (self._project(f"cross_{name}", context.states) for name in "kv")
        settings = {"scale": 1.0, "dropout_rate": self._attention_dropout, "key": probs_key}
        y = context.attend(q, k, v, segments_BT, self.compute, **settings)
        return self._add(x_BTD, "cross_o", y, output_key)

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        c = self.config
        # The logits are not scaled: the query's initialization is, instead.
        fan = c.embed_dim * c.head_dim if name.endswith("q") else c.embed_dim
        init = normal(c.init_factor * fan**-0.5)
        sizes = (c.embed_dim, c.num_heads, c.head_dim)
        # Of cross-attention, too, which knows no relative positions: a step is no faster with these side by side.
        return dense(self, name, x, sizes, _HEADS_AXES, init=init, bias=False, heads_apart=True)

    def _add(self, x_BTD: jax.Array, name: str, y_BTNH: jax.Array, key: Key) -> jax.Array:
        """x + the output map `name` of the heads."""
        c = self.config
        sizes, init = (c.num_heads, c.head_dim, c.embed_dim), normal(c.init_factor * (c.num_heads * c.head_dim) ** -0.5)
        axes = _HEADS_AXES[1:] + _HEADS_AXES[:1]
        y = dense(self, name, y_BTNH, sizes, axes, contract=2, init=init, bias=False, heads_apart=True)
        x = x_BTD + dropout(y, c.dropout, key).astype(x_BTD.dtype)
        return constrain(x, ("batch", "length", "act_embed"), self.compute.rules)

    @property
    def _attention_dropout(self) -> float:
        c = self.config
        return c.dropout if c.attention_dropout is None else c.attention_dropout


_HEADS_AXES = ("embed", "heads", "head_dim")


class Stack(nn.Module):
    """All blocks, their parameters stacked, the relative positions that they share, and the last norm."""

    config: T5Config
    num_layers: int
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"] | None = None,
        context: States | Encoded | None = None,
        key: Key = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Bidirectional self-attention; with `context` (the decoder), causal self-attention and cross-attention.

        Returns the normalized states in the compute dtype, and the cache with these tokens in it.
        """
        del positions_BT  # the columns tell how far apart tokens are
        c, rules = self.config, self.compute.rules
        embed_key, stack_key, output_key = split_key(key, 3)
        x = dropout(x_BTD.astype(jnp.float32), c.dropout, embed_key)
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        if cache is not None:
            cache = cache.extend(segment_ids_BT)
        encodes = context is None
        mask = Mask(segment_ids_BT, segment_ids_BT) if encodes else decoder_mask(segment_ids_BT, cache)
        table = param(
            self, "relative_bias", normal(c.init_factor * c.embed_dim**-0.5), (c.num_buckets, c.num_heads),
            ("buckets", "heads"),
        )  # fmt: skip
        settings = {"max_distance": c.max_distance, "bidirectional": encodes}
        if mask.columns_BT is None:
            bias = relative_bias(table, x.shape[1], **settings)
            bias = constrain(bias, (None, "act_heads", "length", "kv_length"), rules)
        else:
            bias = relative_bias_at(table, mask.columns_BT, mask.key_BS.shape[1], **settings)
            bias = constrain(bias, ("batch", "act_heads", "length", "kv_length"), rules)
        block = Block(c, self.compute)
        # Parameters depend neither on a cache nor on what was encoded.
        sample = (decoder_mask(segment_ids_BT, None), None, None if encodes else States(x, segment_ids_BT))
        layers = declare_stack(self, "layers", init_stack(block, self.num_layers, x, *sample))
        layers = {"params": layers, "index": jnp.arange(self.num_layers, dtype=jnp.int32)}

        def apply(layer: Any, carry: Any, k: Key) -> Any:
            x, cache = carry
            return block.apply({"params": layer["params"]}, x, mask, bias, context, k, cache, layer["index"])

        x, cache = run_stack(apply, layers, (x, cache), stack_key, self.compute)
        x = rms_norm(self, "final_norm", x, c.norm_eps).astype(self.compute.dtype)
        return dropout(x, c.dropout, output_key), cache

    def project(self, context: States) -> Encoded:
        """Returns what all layers' cross-attention reads of the encoder."""
        layers = self.get_variable("params", "layers")
        return Encoded.of_layers(Block(self.config, self.compute, parent=None), layers, context, self.compute.rules)


class T5Trunk(EncoderDecoderTrunk):
    config: T5Config

    def setup(self) -> None:
        c = self.config
        shape = (c.vocab_size, c.embed_dim)
        self.tokens = param(self, "tokens", normal(c.init_factor), shape, ("vocab", "embed"))
        self.encoder = Stack(c, c.num_layers, self.compute)
        self.decoder = Stack(c, c.num_decoder_layers or c.num_layers, self.compute)


def init_cache(config: T5Config, rows: int, length: int, dtype: Any) -> KVCache:
    """Returns an empty cache of the decoder's self-attention."""
    layers = config.num_decoder_layers or config.num_layers
    return empty_cache(layers, rows, length, config.num_heads, config.head_dim, dtype)


class ScaledHead(nn.Module):
    """Logits by the token table, whose rows are of unit size in each component, from states scaled down to it."""

    compute: ComputeConfig
    tied: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], batch: Batch, key: Key, table: Float[Array, "V D"]) -> FactoredLogits:
        del batch, key
        x = x * jnp.asarray(table.shape[1] ** -0.5, x.dtype)
        return FactoredLogits(x, table, None, self.compute.rules, self.compute.half_products)
