"""The encoder-decoder of BART (Lewis et al., 2020, arXiv:1910.13461), mBART (Liu et al., 2020, arXiv:2001.08210),
Marian (Junczys-Dowmunt et al., 2018) and Pegasus (Zhang et al., 2020, arXiv:1912.08777), after Vaswani et al., 2017.

Shape letters: B rows, R rows of the decoder, T row length, S encoder length, U decoder length, D embed, N heads,
H head_dim, V vocab.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
    embed,
    embedding_table,
    param,
    shard_heads,
    split_key,
)
from jaxlm.nn.norms import layer_norm
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack
from jaxlm.parallel.sharding import constrain

FIRST_POSITION = 2
"""Row of a position table that an example's first token reads."""
_EPS = 1e-5
_HEADS_AXES = ("embed", "heads", "head_dim")
_ACTIVATIONS = ("batch", "length", "act_embed")


@dataclass(frozen=True)
class BartConfig:
    vocab_size: int = 50265
    num_layers: int = 12
    num_decoder_layers: int | None = None
    """As many as the encoder's where not given; heads and MLP of the decoder likewise."""
    embed_dim: int = 1024
    num_heads: int = 16
    num_decoder_heads: int | None = None
    mlp_dim: int = 4096
    decoder_mlp_dim: int | None = None
    max_positions: int = 1024
    activation: str = "gelu"
    scale_embedding: bool = False
    """Token embeddings are multiplied by the square root of their width."""
    dropout: float = 0.1
    """Of the embeddings and of what attention and MLP add to the states."""
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    """Inside the MLP."""
    classifier_dropout: float = 0.0
    layer_dropout: float = 0.0
    """How often a layer of the encoder is skipped while training (Fan et al., 2020)."""
    decoder_layer_dropout: float = 0.0
    init_std: float = 0.02
    bos_id: int | None = 0
    eos_id: int | tuple[int, ...] | None = 2
    pad_id: int = 1
    decoder_start_id: int = 2
    """The token that the decoder reads first."""
    forced_eos_id: int | tuple[int, ...] | None = 2
    """What a text ends with that has reached the largest length."""

    def __post_init__(self) -> None:
        for heads in (self.num_heads, self.num_decoder_heads or self.num_heads):
            if self.embed_dim % heads:
                raise UserError(f"model config: {heads} attention heads do not divide the width {self.embed_dim}")

    def sizes(self, decodes: bool) -> tuple[int, int, int]:
        """Returns the number of layers, the number of heads and the MLP's width of the encoder or the decoder."""
        own = (self.num_layers, self.num_heads, self.mlp_dim)
        given = (self.num_decoder_layers, self.num_decoder_heads, self.decoder_mlp_dim)
        layers, heads, mlp_dim = (theirs or ours for ours, theirs in zip(own, given, strict=True))
        return (layers, heads, mlp_dim) if decodes else own


class Design(NamedTuple):
    """What tells the families apart."""

    learned: bool
    """Positions are tables, and embeddings are normalized; else positions are sinusoids."""
    pre_norm: bool
    """Norms stand before attention and MLP, and one behind the last layer; else behind what they add to the states."""


class Block(nn.Module):
    """Attention to the stack itself, in a decoder then to the encoder, then the MLP, each added to the states."""

    config: BartConfig
    design: Design
    decodes: bool
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        mask: Mask,
        context: States | Encoded | None = None,
        key: Key = None,
        cache: KVCache | None = None,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Returns the new states, and the cache with this layer's keys and values.

        Args:
          context: what a decoder reads of the encoder.
          layer: the layer's number, wanted with a cache.
        """
        c, rules = self.config, self.compute.rules
        mlp_dim = c.sizes(self.decodes)[2]
        probs_key, output_key, cross_key, read_key, inner_key, mlp_key = split_key(key, 6)
        y = self._before("attention", x_BTD)
        q, k, v = (self._project(name, y) for name in "qkv")
        if cache is not None and layer is not None:
            cache, k, v = cache.put(layer, k, v)
        q, k, v = shard_heads(q, k, v, rules)
        y = attend(q, k, v, mask, self.compute, dropout_rate=c.attention_dropout, key=probs_key)
        x = self._add("attention", x_BTD, self._output("o", y), output_key)
        if context is not None:
            y = self._read(self._before("cross", x), context, mask.query_BT, layer, cross_key)
            x = self._add("cross", x, self._output("cross_o", y), read_key)
        y = dense(self, "up", self._before("mlp", x), (c.embed_dim, mlp_dim), ("embed", "mlp"))
        y = activation(c.activation)(constrain(y, ("batch", "length", "act_mlp"), rules))
        y = dropout(y, c.activation_dropout, inner_key)
        y = dense(self, "down", y, (mlp_dim, c.embed_dim), ("mlp", "embed"))
        return self._add("mlp", x, y, mlp_key), cache

    def cross_keys_values(self, context_BSD: Float[Array, "B S D"]) -> tuple[jax.Array, jax.Array]:
        """Returns what cross-attention reads of the encoder's states, [B, S, N, H] each."""
        k, v = (dense_again(self, f"cross_{name}", context_BSD, _HEADS_AXES) for name in "kv")
        return k, v

    def _read(self, y_BTD: Any, context: States | Encoded, segments_BT: Any, layer: Any, key: Key) -> Any:
        q = self._project("cross_q", y_BTD)
        if isinstance(context, Encoded):
            return context.attend(q, segments_BT, layer, self.compute)
        k, v = (self._project(f"cross_{name}", context.states) for name in "kv")
        dropped = {"dropout_rate": self.config.attention_dropout, "key": key}
        return context.attend(q, k, v, segments_BT, self.compute, **dropped)

    def _before(self, name: str, x: jax.Array) -> jax.Array:
        return layer_norm(self, f"{name}_norm", x, _EPS) if self.design.pre_norm else x

    def _add(self, name: str, x_BTD: jax.Array, y_BTD: jax.Array, key: Key) -> jax.Array:
        x = x_BTD + dropout(y_BTD, self.config.dropout, key).astype(x_BTD.dtype)
        if not self.design.pre_norm:
            x = layer_norm(self, f"{name}_norm", x, _EPS)
        return constrain(x, _ACTIVATIONS, self.compute.rules)

    def _project(self, name: str, x: jax.Array) -> jax.Array:
        return dense(self, name, x, self._heads, _HEADS_AXES)

    def _output(self, name: str, y_BTNH: jax.Array) -> jax.Array:
        sizes, axes = self._heads[1:] + self._heads[:1], _HEADS_AXES[1:] + _HEADS_AXES[:1]
        return dense(self, name, y_BTNH, sizes, axes, contract=2)

    @property
    def _heads(self) -> tuple[int, int, int]:
        heads = self.config.sizes(self.decodes)[1]
        return self.config.embed_dim, heads, self.config.embed_dim // heads


class Stack(nn.Module):
    """Positions and all blocks of the encoder or the decoder, their parameters stacked."""

    config: BartConfig
    design: Design
    decodes: bool
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"],
        positions_BT: Int[Array, "B T"],
        context: States | Encoded | None = None,
        key: Key = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B T D"], KVCache | None]:
        """Returns the states of embedded tokens in the compute dtype, and the cache with these tokens in it.

        Where norms stand before the layers, the states between these are float32: they grow from layer to layer.
        """
        c, rules = self.config, self.compute.rules
        embed_key, stack_key = split_key(key, 2)
        x = self._embed(x_BTD, positions_BT)
        x = x if self.design.pre_norm else x.astype(self.compute.dtype)
        x = constrain(dropout(x, c.dropout, embed_key), _ACTIVATIONS, rules)
        if cache is not None:
            cache = cache.extend(segment_ids_BT)
        mask = decoder_mask(segment_ids_BT, cache) if self.decodes else Mask(segment_ids_BT, segment_ids_BT)
        block = self._block()
        num_layers = c.sizes(self.decodes)[0]
        # Parameters depend neither on a cache nor on what was encoded.
        sample = (decoder_mask(segment_ids_BT, None), States(x, segment_ids_BT) if self.decodes else None)
        layers = declare_stack(self, "layers", init_stack(block, num_layers, x, *sample))
        layers = {"params": layers, "index": jnp.arange(num_layers, dtype=jnp.int32)}
        rate = c.decoder_layer_dropout if self.decodes else c.layer_dropout

        def apply(layer: Any, carry: Any, k: Key) -> Any:
            x, cache = carry
            skip_key, k = split_key(k, 2) if rate else (None, k)
            y, cache = block.apply({"params": layer["params"]}, x, mask, context, k, cache, layer["index"])
            return y if skip_key is None else jnp.where(jax.random.bernoulli(skip_key, rate), x, y), cache

        x, cache = run_stack(apply, layers, (x, cache), stack_key, self.compute)
        if self.design.pre_norm:
            x = layer_norm(self, "final_norm", x, _EPS)
        return x.astype(self.compute.dtype), cache

    def project(self, context: States) -> Encoded:
        """Returns what all layers' cross-attention reads of the encoder."""
        layers = self.get_variable("params", "layers")
        return Encoded.of_layers(self._block(), layers, context, self.compute.rules)

    def _block(self) -> Block:
        return Block(self.config, self.design, self.decodes, self.compute, parent=None)

    def _embed(self, x_BTD: jax.Array, positions_BT: jax.Array) -> jax.Array:
        """Adds the positions to the token embeddings: float32."""
        c = self.config
        x = x_BTD * math.sqrt(c.embed_dim) if c.scale_embedding else x_BTD
        if self.design.learned:
            rows = c.max_positions + FIRST_POSITION
            x = x + embed(self, "positions", positions_BT + FIRST_POSITION, rows, c.embed_dim, "positions")
            return layer_norm(self, "embed_norm", x, _EPS)
        table = jnp.asarray(sinusoids(c.max_positions, c.embed_dim))
        return x + constrain(jnp.take(table, positions_BT, axis=0), _ACTIVATIONS, self.compute.rules)


def sinusoids(num: int, embed_dim: int) -> np.ndarray:
    """Returns the position table of Marian and Pegasus, float32 [num, embed_dim]: first all sines, then all cosines."""
    columns = np.arange(embed_dim)
    angles = np.arange(num)[:, None] / np.power(10000.0, 2 * (columns // 2) / embed_dim)
    return np.concatenate([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=1).astype(np.float32)


class BartTrunk(EncoderDecoderTrunk):
    config: BartConfig
    design: Design

    def setup(self) -> None:
        c = self.config
        self.tokens = embedding_table(self, "tokens", c.vocab_size, c.embed_dim, "vocab")
        self.encoder = Stack(c, self.design, False, self.compute)
        self.decoder = Stack(c, self.design, True, self.compute)


def init_cache(config: BartConfig, rows: int, length: int, dtype: Any) -> KVCache:
    """Returns the decoder's empty cache."""
    layers, heads, _ = config.sizes(True)
    return empty_cache(layers, rows, length, heads, config.embed_dim // heads, dtype)


class BiasedHead(nn.Module):
    """Logits by the token table and a bias, which checkpoints hold and nothing learns."""

    compute: ComputeConfig
    tied: ClassVar[bool] = True

    @nn.compact
    def __call__(self, x: Float[Array, "B U D"], batch: Batch, key: Key, table: Float[Array, "V D"]) -> FactoredLogits:
        del batch, key
        bias = param(self, "logits_bias", nn.initializers.zeros, table.shape[:1], ("vocab",))
        bias = jax.lax.stop_gradient(bias)
        return FactoredLogits(x, table, bias, self.compute.rules, self.compute.half_products)


def seq2seq_lm(config: BartConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """A `Head.build`: the next token of the target."""
    del config, num_outputs
    return BiasedHead(compute)
