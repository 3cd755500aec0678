"""What BERT, RoBERTa, DistilBERT and ELECTRA share: summed embeddings, a post-norm stack, and their names in HF.

Shape letters: R rows, T row length, S slots, D embed, N heads, H head_dim, F mlp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.weight_map import Rule
from jaxlm.nn.attention import Mask, attend
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    activation,
    dense,
    embed,
    init_stack,
    layer_norm,
    normal,
    run_stack,
    shard_heads,
    split_key,
)
from jaxlm.parallel.sharding import constrain


def embeddings(
    module: nn.Module,
    tokens: Int[Array, "R T"],
    positions: Int[Array, "R T"],
    token_types: Int[Array, "R T"] | None,
    key: Key,
    *,
    sizes: tuple[int, int, int, int],
    norm_eps: float,
    dropout_rate: float,
    init_std: float,
    compute: ComputeConfig,
) -> Float[Array, "R T D"]:
    """Sum of token, position and token-type embeddings, normalised, with dropout, in the compute dtype.

    Args:
      sizes: rows of the token, position and token-type tables, then their width. No rows, no table. A token type
        beyond the table counts as its last: a model of one type reads pairs as it reads single texts.
      token_types: absent: all 0.
    """
    vocab_size, num_positions, num_types, embed_dim = sizes
    x = embed(module, "tokens", tokens, vocab_size, embed_dim, "vocab", init_std)
    x = x + embed(module, "positions", positions, num_positions, embed_dim, "positions", init_std)
    if num_types:
        known = jnp.zeros_like(tokens) if token_types is None else jnp.minimum(token_types, num_types - 1)
        x = x + embed(module, "types", known, num_types, embed_dim, "types", init_std)
    x = layer_norm(module, "embed_norm", x, norm_eps).astype(compute.dtype)
    return constrain(dropout(x, dropout_rate, key), ("batch", "length", "act_embed"), compute.rules)


@dataclass(frozen=True)
class StackConfig:
    """Sizes and rates of the stack, whatever the family calls them."""

    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    attention_dropout: float
    """Of the attention probabilities."""
    attention_output_dropout: float
    mlp_dropout: float
    """Of the MLP's output."""
    init_std: float

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise UserError(f"model config: {self.num_heads} attention heads do not divide the width {self.embed_dim}")


class Block(nn.Module):
    """x + attention, norm, x + MLP, norm (Vaswani et al., 2017)."""

    config: StackConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_RSD: Float[Array, "R S D"],
        context_RTD: Float[Array, "R T D"],
        mask: Mask,
        key: Key = None,
    ) -> Float[Array, "R S D"]:
        """Updates the states `x`, which read `context` (in all but the last layer, x itself)."""
        c, dtype, rules = self.config, self.compute.dtype, self.compute.rules
        heads = (c.embed_dim, c.num_heads, c.embed_dim // c.num_heads)
        heads_axes = ("embed", "heads", "head_dim")
        activations = ("batch", "length", "act_embed")
        init = normal(c.init_std)
        attention_key, output_key, mlp_key = split_key(key, 3)

        q = dense(self, "q", x_RSD, heads, heads_axes, init=init, dtype=dtype)
        k = dense(self, "k", context_RTD, heads, heads_axes, init=init, dtype=dtype)
        v = dense(self, "v", context_RTD, heads, heads_axes, init=init, dtype=dtype)
        q, k, v = shard_heads(q, k, v, rules)
        y = attend(q, k, v, mask, self.compute, dropout_rate=c.attention_dropout, key=attention_key)
        y = dense(
            self, "o", y, heads[1:] + heads[:1], heads_axes[1:] + heads_axes[:1], contract=2, init=init, dtype=dtype
        )
        x = layer_norm(self, "attention_norm", x_RSD + dropout(y, c.attention_output_dropout, output_key), c.norm_eps)
        x = constrain(x, activations, rules)

        y = dense(self, "up", x, (c.embed_dim, c.mlp_dim), ("embed", "mlp"), init=init, dtype=dtype)
        y = activation(c.activation)(constrain(y, ("batch", "length", "act_mlp"), rules))
        y = dense(self, "down", y, (c.mlp_dim, c.embed_dim), ("mlp", "embed"), init=init, dtype=dtype)
        x = layer_norm(self, "mlp_norm", x + dropout(y, c.mlp_dropout, mlp_key), c.norm_eps)
        return constrain(x, activations, rules)


class Stack(nn.Module):
    """All blocks, their parameters stacked along a leading axis."""

    config: StackConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_RTD: Float[Array, "R T D"],
        segment_ids_RT: Int[Array, "R T"],
        slot_positions_RS: Int[Array, "R S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "R Q D"]:
        """Returns the states of all positions, or of `slot_positions` alone.

        A head that reads one position per example needs no other output of the last layer: its queries, output
        projection and MLP are then computed at the slots only, with the same result.
        """
        block = Block(self.config, self.compute)
        mask = Mask(segment_ids_RT, segment_ids_RT)
        params = self.param("layers", init_stack(block, self.config.num_layers, x_RTD, x_RTD, mask))

        def apply(layer: Any, x: Array, k: Key) -> Any:
            return block.apply({"params": layer}, x, x, mask, k)

        if slot_positions_RS is None:
            return run_stack(apply, params, x_RTD, key, self.compute)

        def apply_at_slots(layer: Any, x: Array, k: Key) -> Any:
            slots_RSD = jnp.take_along_axis(x, slot_positions_RS[..., None], axis=1)
            return block.apply({"params": layer}, slots_RSD, x, mask.at(slot_positions_RS), k)

        return run_stack(apply, params, x_RTD, key, self.compute, last=apply_at_slots)


_PATTERNS = {
    "q": "(n h) d -> d n h",
    "k": "(n h) d -> d n h",
    "v": "(n h) d -> d n h",
    "o": "d (n h) -> n h d",
    "attention_norm": "",
    "up": "f d -> d f",
    "down": "d f -> f d",
    "mlp_norm": "",
}
_BERT_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def stack_rows(prefix: str, names: Mapping[str, str] = _BERT_NAMES) -> tuple[Rule, ...]:
    """HF rows of the stack.

    Args:
      prefix: HF prefix of a layer, ending in its index, "bert.encoder.layer.{i}.".
      names: our name -> HF module within the layer; BERT's by default.
    """
    rows = []
    for ours, theirs in names.items():
        pattern = _PATTERNS[ours]
        weight = f"trunk/stack/layers/{ours}" + ("" if pattern else "_scale")
        rows.append(Rule(weight, f"{prefix}{theirs}.weight", pattern))
        bias_pattern = "(n h) -> n h" if ours in "qkv" else ""
        rows.append(Rule(f"trunk/stack/layers/{ours}_bias", f"{prefix}{theirs}.bias", bias_pattern))
    return tuple(rows)


def embedding_rows(prefix: str) -> tuple[Rule, ...]:
    """HF rows of the embeddings in BERT's naming; `prefix` is "bert.embeddings."."""
    return (
        Rule("trunk/tokens", f"{prefix}word_embeddings.weight"),
        Rule("trunk/positions", f"{prefix}position_embeddings.weight"),
        Rule("trunk/types", f"{prefix}token_type_embeddings.weight"),
        Rule("trunk/embed_norm_scale", f"{prefix}LayerNorm.weight"),
        Rule("trunk/embed_norm_bias", f"{prefix}LayerNorm.bias"),
    )


def masked_lm_rows(dense: str, norm: str, bias: str) -> tuple[Rule, ...]:
    """HF rows of `heads.MaskedLanguageModelHead`, from the names of its two modules and of the vocabulary's bias.

    HF's fourth tensor, the decoder's weight, is the token table again: `Table.ignore` names it.
    """
    return (
        Rule("head/transform", f"{dense}.weight", "e d -> d e"),
        Rule("head/transform_bias", f"{dense}.bias"),
        Rule("head/transform_norm_scale", f"{norm}.weight"),
        Rule("head/transform_norm_bias", f"{norm}.bias"),
        Rule("head/vocab_bias", bias),
    )


# Our config field -> HF's, in BERT's naming.
BERT_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "num_types": "type_vocab_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
    "init_std": "initializer_range",
    "pad_id": "pad_token_id",
}

# Checkpoints from before 2019 call a norm's scale gamma and its offset beta.
OLD_NORM_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
