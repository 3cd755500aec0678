"""Llama's network (Touvron et al., 2023, arXiv:2302.13971), which by its configuration is also that of Mistral
(arXiv:2310.06825), Qwen2 (arXiv:2407.10671) and Qwen3 (arXiv:2505.09388): `llama_family` has their records."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.errors import UserError
from jaxlm.nn.attention import KVCache, Mask, attend, decoder_mask, empty_cache
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    activation,
    dense,
    embedding_lookup,
    embedding_table,
    shard_heads,
    split_key,
    take_columns,
)
from jaxlm.nn.norms import rms_norm
from jaxlm.nn.rotary import apply_rope, plain_rope_frequencies
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack
from jaxlm.parallel.sharding import constrain

ROPE_TYPES = ("default", "linear", "llama3")


@dataclass(frozen=True)
class LlamaConfig:
    vocab_size: int = 32000
    num_layers: int = 32
    embed_dim: int = 4096
    num_heads: int = 32
    num_kv_heads: int | None = None
    """Key and value heads, each read by num_heads / num_kv_heads query heads; absent: one for each."""
    head_dim: int | None = None
    """Absent: embed_dim / num_heads."""
    mlp_dim: int = 11008
    max_positions: int = 4096
    activation: str = "silu"
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    output_bias: bool = False
    """Of attention's output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMS norm of each query and key head (Henry et al., 2020)."""
    window: int | None = None
    """Most tokens that a token sees back, itself included."""
    windowed_layers: tuple[bool, ...] | None = None
    """Layers that the window holds for; absent: all."""
    rope_theta: float = 10000.0
    rope_type: str = "default"
    """default, linear or llama3: see `rope_frequencies`."""
    rope_factor: float = 1.0
    rope_low_factor: float = 1.0
    rope_high_factor: float = 4.0
    rope_original_positions: int = 8192
    dropout: float = 0.0
    """Of the embeddings, and of what attention and MLP add to the states."""
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.0
    tied: bool = False
    """Logits by the token table."""
    init_std: float = 0.02
    bos_id: int | None = 1
    eos_id: int | tuple[int, ...] | None = 2
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.windowed_layers, list):  # of a YAML file; a config is hashed
            object.__setattr__(self, "windowed_layers", tuple(self.windowed_layers))
        num_heads, num_kv_heads, head_dim = self.heads
        if self.head_dim is None and self.embed_dim % num_heads:
            raise UserError(f"model config: {num_heads} attention heads do not divide the width {self.embed_dim}")
        if num_heads % num_kv_heads:
            raise UserError(f"model config: {num_kv_heads} key-value heads do not divide {num_heads} attention heads")
        if head_dim % 2:
            raise UserError(f"model config: head_dim={head_dim}: expected an even number, for rotary positions")
        if self.rope_type not in ROPE_TYPES:
            kinds = ", ".join(ROPE_TYPES)
            raise UserError(f"model config: rope_type={self.rope_type!r} is not supported; expected one of {kinds}")
        if self.windowed_layers is not None and len(self.windowed_layers) != self.num_layers:
            found = len(self.windowed_layers)
            raise UserError(f"model config: windowed_layers says it of {found} layers, the model has {self.num_layers}")

    @property
    def heads(self) -> tuple[int, int, int]:
        """Number of query heads, of key and value heads, and the size of a head."""
        kv = self.num_heads if self.num_kv_heads is None else self.num_kv_heads
        return self.num_heads, kv, self.embed_dim // self.num_heads if self.head_dim is None else self.head_dim


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Radians per position of each pair of a head's dimensions, float32 [H / 2].

    theta^(-2h/H) (Su et al., 2021), by rope_type: "linear": divided by the factor (Chen et al., 2023). "llama3":
    divided where fewer than `rope_low_factor` turns fit the original positions, as it is where more than
    `rope_high_factor` do, and in between a mean of both, linear in the number of turns (Grattafiori et al., 2024).
    """
    number, plain = np.float32, plain_rope_frequencies(config.rope_theta, config.heads[2])
    factor, low, high = map(number, (config.rope_factor, config.rope_low_factor, config.rope_high_factor))
    if config.rope_type == "default":
        return plain
    if config.rope_type == "linear":
        return plain / factor
    wavelengths = number(1) / plain * number(2 * np.pi)  # PyTorch divides a number by an array so
    original = number(config.rope_original_positions)
    share = (number(1) / wavelengths * original - low) / (high - low)
    between = (number(1) - share) * plain / factor + share * plain
    outside = np.where(wavelengths > original / low, plain / factor, plain)
    return np.where((wavelengths > original / low) | (wavelengths < original / high), outside, between)


class Block(nn.Module):
    """x + attention of its norm, x + gated MLP of its norm."""

    config: LlamaConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        positions_BT: Int[Array, "B T"],
        mask: Mask,
        key: Key = None,
        slots_BQ: Int[Array, "B Q"] | None = None,
        cache: KVCache | None = None,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B Q D"], KVCache | None]:
        """Returns the new states, at `slots` alone where given, and the cache with this layer's keys and values."""
        c, rules = self.config, self.compute.rules
        D, (N, K, H) = c.embed_dim, c.heads
        at_slots, activations = partial(take_columns, columns=slots_BQ), ("batch", "length", "act_embed")
        attention_key, output_key, mlp_key = split_key(key, 3)
        linear = partial(dense, self)

        y = rms_norm(self, "attention_norm", x_BTD, c.norm_eps)
        y_BQD = constrain(at_slots(y), activations, rules)  # its gradient, too, else the compiler splits that along D
        q = linear("q", y_BQD, (D, N, H), ("embed", "heads", "head_dim"), bias=c.qkv_bias)
        k = linear("k", y, (D, K, H), ("embed", "kv_heads", "head_dim"), bias=c.qkv_bias)
        v = linear("v", y, (D, K, H), ("embed", "kv_heads", "head_dim"), bias=c.qkv_bias)
        if c.qk_norm:
            q, k = rms_norm(self, "q_norm", q, c.norm_eps), rms_norm(self, "k_norm", k, c.norm_eps)
        frequencies = rope_frequencies(c)
        q = apply_rope(q, at_slots(positions_BT), frequencies, rules)
        k = apply_rope(k, positions_BT, frequencies, rules)
        if cache is not None and layer is not None:
            cache, k, v = cache.put(layer, k, v)
        q, k, v = shard_heads(q, k, v, rules)
        y = attend(q, k, v, mask.at(slots_BQ), self.compute, dropout_rate=c.attention_dropout, key=attention_key)
        y = linear("o", y, (N, H, D), ("heads", "head_dim", "embed"), contract=2, bias=c.output_bias)
        x = at_slots(x_BTD) + dropout(y, c.dropout, output_key)
        x = constrain(x, activations, rules)

        y = rms_norm(self, "mlp_norm", x, c.norm_eps)
        gate = linear("gate", y, (D, c.mlp_dim), ("embed", "mlp"), bias=c.mlp_bias)
        up = linear("up", y, (D, c.mlp_dim), ("embed", "mlp"), bias=c.mlp_bias)
        gate, up = (constrain(t, ("batch", "length", "act_mlp"), rules) for t in (gate, up))
        y = linear("down", activation(c.activation)(gate) * up, (c.mlp_dim, D), ("mlp", "embed"), bias=c.mlp_bias)
        x = x + dropout(y, c.dropout, mlp_key)
        return constrain(x, activations, rules), cache


class LlamaTrunk(nn.Module):
    config: LlamaConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.tokens = embedding_table(self, "tokens", self.config.vocab_size, self.config.embed_dim, "vocab")

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        prefix: Int[Array, "B T"] | None = None,
        slot_positions: Int[Array, "B S"] | None = None,
        key: Key = None,
        cache: KVCache | None = None,
    ) -> Any:
        """Returns the normalized states, and the cache where one is given."""
        c = self.config
        embed_key, stack_key = split_key(key, 2)
        x = embedding_lookup(self.tokens, tokens, self.compute.rules)
        x = dropout(x.astype(self.compute.dtype), c.dropout, embed_key)
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)

        if cache is not None:
            cache = cache.extend(segment_ids, prefix)
        mask = decoder_mask(segment_ids, cache, window=c.window, prefix_BT=prefix)
        block = Block(c, self.compute)
        inputs = (x, positions, decoder_mask(segment_ids, None))
        params = declare_stack(self, "layers", init_stack(block, c.num_layers, *inputs))
        layers = {"params": params, "index": jnp.arange(c.num_layers, dtype=jnp.int32)}
        if c.window is not None and c.windowed_layers is not None:
            layers["windowed"] = jnp.asarray(c.windowed_layers)

        def apply(layer: Any, carry: Any, k: Key, slots: Any = None) -> Any:
            x, cache = carry
            own = replace(mask, windowed=layer.get("windowed"))
            return block.apply({"params": layer["params"]}, x, positions, own, k, slots, cache, layer["index"])

        last = None if slot_positions is None else partial(apply, slots=slot_positions)
        x, cache = run_stack(apply, layers, (x, cache), stack_key, self.compute, last)
        x = rms_norm(self, "final_norm", x, c.norm_eps)
        return x if cache is None else (x, cache)


def init_cache(config: LlamaConfig, rows: int, length: int, dtype: Any) -> KVCache:
    _, num_kv_heads, head_dim = config.heads
    return empty_cache(config.num_layers, rows, length, num_kv_heads, head_dim, dtype)
