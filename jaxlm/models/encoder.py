"""The trunk of BERT and of families like it: summed embeddings, post-norm blocks, and their names in HF.

Shape letters: B rows, T row length, S slots, Q queries (T or S), E table width, D embed, N heads, H head_dim, F mlp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    embedding_lookup,
    embedding_table,
    shard_heads,
    split_key,
    take_columns,
)
from jaxlm.nn.norms import layer_norm
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack
from jaxlm.parallel.sharding import constrain


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and rates of an encoder, whatever its family calls them."""

    vocab_size: int
    num_positions: int
    """Rows of the position table; 0: there is none."""
    num_types: int
    """Rows of the token-type table; 0: there is none."""
    table_dim: int
    """Width of the tables; projected to `embed_dim` where it differs."""
    num_layers: int
    embed_dim: int
    num_heads: int
    mlp_dim: int
    activation: str
    norm_eps: float
    dropout: float
    """Of the embeddings and of the MLP's output."""
    attention_dropout: float
    """Of the attention probabilities."""
    attention_output_dropout: float
    init_std: float
    first_position: int = 0
    """Row of the position table that an example's first token reads."""
    projects: bool = False
    """The embeddings are projected even where they are as wide as the blocks."""

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise UserError(f"model config: {self.num_heads} attention heads do not divide the width {self.embed_dim}")


class Embeddings(nn.Module):
    """Sum of token, position and token-type embeddings, normalized, with dropout."""

    config: EncoderConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.tokens = embedding_table(self, "tokens", self.config.vocab_size, self.config.table_dim, "vocab")

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B T E"]:
        """Returns the embeddings in the compute dtype.

        Args:
          token_types: absent: all 0. A type beyond the table counts as its last: a model of one type reads pairs as it
            reads single texts.
        """
        c, rules = self.config, self.compute.rules
        x = embedding_lookup(self.tokens, tokens, rules)
        if c.num_positions:
            rows = positions + c.first_position if c.first_position else positions
            x = x + embed(self, "positions", rows, c.num_positions, c.table_dim, "positions")
        if c.num_types:
            known = jnp.zeros_like(tokens) if token_types is None else jnp.minimum(token_types, c.num_types - 1)
            x = x + embed(self, "types", known, c.num_types, c.table_dim, "types")
        x = layer_norm(self, "embed_norm", x, c.norm_eps).astype(self.compute.dtype)
        return constrain(dropout(x, c.dropout, key), ("batch", "length", "act_embed"), rules)


class Block(nn.Module):
    """x + attention, norm, x + MLP, norm (Vaswani et al., 2017)."""

    config: EncoderConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BQD: Float[Array, "B Q D"],
        context_BTD: Float[Array, "B T D"],
        mask: Mask,
        key: Key = None,
        relative: Any = None,
    ) -> Float[Array, "B Q D"]:
        """Updates the states `x`, which read `context` (in all but the last layer, x itself).

        Args:
          relative: what all layers know of relative positions (`Stack.relative_positions`).
        """
        c, rules = self.config, self.compute.rules
        heads = (c.embed_dim, c.num_heads, c.embed_dim // c.num_heads)
        heads_axes, apart = ("embed", "heads", "head_dim"), relative is not None
        activations = ("batch", "length", "act_embed")
        attention_key, output_key, mlp_key = split_key(key, 3)

        q = dense(self, "q", x_BQD, heads, heads_axes, heads_apart=apart)
        k = dense(self, "k", context_BTD, heads, heads_axes, heads_apart=apart)
        v = dense(self, "v", context_BTD, heads, heads_axes, heads_apart=apart)
        q, k, v = shard_heads(q, k, v, rules)
        bias, scale = self.relative_bias(q, k, mask, relative, attention_key)
        y = attend(
            q, k, v, mask, self.compute, bias=bias, scale=scale, dropout_rate=c.attention_dropout, key=attention_key
        )
        sizes, axes = heads[1:] + heads[:1], heads_axes[1:] + heads_axes[:1]
        y = dense(self, "o", y, sizes, axes, contract=2, heads_apart=apart)
        x = layer_norm(self, "attention_norm", x_BQD + dropout(y, c.attention_output_dropout, output_key), c.norm_eps)
        x = constrain(x, activations, rules)

        y = dense(self, "up", x, (c.embed_dim, c.mlp_dim), ("embed", "mlp"))
        y = activation(c.activation)(constrain(y, ("batch", "length", "act_mlp"), rules))
        y = dense(self, "down", y, (c.mlp_dim, c.embed_dim), ("mlp", "embed"))
        x = layer_norm(self, "mlp_norm", x + dropout(y, c.dropout, mlp_key), c.norm_eps)
        return constrain(x, activations, rules)

    def relative_bias(
        self, q_BQNH: jax.Array, k_BTNH: jax.Array, mask: Mask, relative: Any, key: Key
    ) -> tuple[jax.Array | None, float | None]:
        """Returns what is added to the logits, [B or 1, N, Q, T], and their scale, as `attend` takes them."""
        return None, None


class Stack(nn.Module):
    """All blocks, their parameters stacked along a leading axis.

    Attributes:
      block: the class of a block.
    """

    config: EncoderConfig
    compute: ComputeConfig
    block: type[Block] = Block

    def relative_positions(self, length: int) -> Any:
        """Returns what every block reads of the relative positions in rows of `length` columns: arrays, or None."""
        return None

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"],
        slot_positions_BS: Int[Array, "B S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B Q D"]:
        """Returns the states of all positions, or of `slot_positions` alone.

        A head that reads one position per example needs no other output of the last layer: its queries, output
        projection and MLP are then computed at the slots only, with the same result.
        """
        block = self.block(self.config, self.compute)
        mask = Mask(segment_ids_BT, segment_ids_BT)
        relative = self.relative_positions(x_BTD.shape[1])
        inputs = (x_BTD, x_BTD, mask, None, relative)
        params = declare_stack(self, "layers", init_stack(block, self.config.num_layers, *inputs))

        def apply(layer: Any, x: Array, k: Key) -> Any:
            return block.apply({"params": layer}, x, x, mask, k, relative)

        def apply_at_slots(layer: Any, x: Array, k: Key) -> Any:
            slots_BSD = take_columns(x, slot_positions_BS)
            return block.apply({"params": layer}, slots_BSD, x, mask.at(slot_positions_BS), k, relative)

        last = None if slot_positions_BS is None else apply_at_slots
        return run_stack(apply, params, x_BTD, key, self.compute, last)


class EncoderTrunk(nn.Module):
    """Embeddings, a projection where they are narrower than the blocks, and the blocks.

    `embed` and `encode` are its halves, for a network of several trunks that read one set of embeddings.

    Attributes:
      blocks: the class of the stack.
    """

    config: EncoderConfig
    compute: ComputeConfig
    blocks: type[Stack] = Stack

    def setup(self) -> None:
        self.embed = Embeddings(self.config, self.compute)
        nn.share_scope(self, self.embed)  # its parameters are the trunk's own
        self.stack = self.blocks(self.config, self.compute)

    @property
    def tokens(self) -> Float[Array, "V E"]:
        """The token table."""
        return self.embed.tokens

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        token_types: Int[Array, "B T"] | None = None,
        slot_positions: Int[Array, "B S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B Q D"]:
        embed_key, stack_key = split_key(key, 2)
        x = self.embed(tokens, positions, token_types, embed_key)
        return self.encode(x, segment_ids, slot_positions, stack_key)

    @nn.compact
    def encode(
        self,
        x_BTE: Float[Array, "B T E"],
        segment_ids: Int[Array, "B T"],
        slot_positions: Int[Array, "B S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B Q D"]:
        """Returns the states of embedded tokens, at the slots alone where given."""
        c = self.config
        x = x_BTE
        if c.projects or c.table_dim != c.embed_dim:
            x = dense(self, "project", x, (c.table_dim, c.embed_dim), ("embed_in", "embed"))
            x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        return self.stack(x, segment_ids, slot_positions, key)


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


def stack_rules(prefix: str, names: Mapping[str, str] = _BERT_NAMES) -> tuple[Rule, ...]:
    """Returns the HF rules of the stack.

    Args:
      prefix: HF prefix of a layer, ending in its index, "bert.encoder.layer.{i}.".
      names: our name -> HF module within the layer; BERT's by default.
    """
    rules = []
    for ours, theirs in names.items():
        pattern = _PATTERNS[ours]
        weight = f"trunk/stack/layers/{ours}" + ("" if pattern else "_scale")
        rules.append(Rule(weight, f"{prefix}{theirs}.weight", pattern))
        bias_pattern = "(n h) -> n h" if ours in "qkv" else ""
        rules.append(Rule(f"trunk/stack/layers/{ours}_bias", f"{prefix}{theirs}.bias", bias_pattern))
    return tuple(rules)


def embedding_rules(prefix: str) -> tuple[Rule, ...]:
    """Returns the HF rules of the embeddings in BERT's naming; `prefix` is "bert.embeddings."."""
    return (
        Rule("trunk/tokens", f"{prefix}word_embeddings.weight"),
        Rule("trunk/positions", f"{prefix}position_embeddings.weight"),
        Rule("trunk/types", f"{prefix}token_type_embeddings.weight"),
        Rule("trunk/embed_norm_scale", f"{prefix}LayerNorm.weight"),
        Rule("trunk/embed_norm_bias", f"{prefix}LayerNorm.bias"),
    )


def masked_lm_rules(dense: str, norm: str, decoder: str, *, own_bias: bool = True) -> tuple[Rule, ...]:
    """Returns the HF rules of `heads.MaskedLanguageModelHead`, tied to the token table or not.

    Args:
      dense, norm: HF names of the two modules before the product with the vocabulary.
      decoder: HF module of that product or, with `own_bias`, the one that has it as `decoder`, beside a bias.
      own_bias: HF keeps the bias twice, and reads the decoder's where the two are not tied.
    """
    head = (
        Rule("head/transform", f"{dense}.weight", "e d -> d e"),
        Rule("head/transform_bias", f"{dense}.bias"),
        Rule("head/transform_norm_scale", f"{norm}.weight"),
        Rule("head/transform_norm_bias", f"{norm}.bias"),
        Rule("head/vocab_bias", f"{decoder}.bias"),
    )
    if not own_bias:
        return *head, Rule("head/unembed", f"{decoder}.weight"), Rule("head/unembed_bias", f"{decoder}.bias")
    module = f"{decoder}.decoder"
    return (
        *head,
        Rule("head/unembed", f"{module}.weight"),
        Rule("head/unembed_bias", f"{module}.bias", fallback_key=f"{decoder}.bias", twin=f"{decoder}.bias"),
    )


def decoder_copies(module: str, table: str) -> tuple[tuple[str, str], ...]:
    """Returns the `WeightMap.copies` of a masked-LM head whose decoder is tied to the token table."""
    return (f"{module}.decoder.weight", table), (f"{module}.decoder.bias", f"{module}.bias")


def _is_arange(values: np.ndarray, config: Any) -> bool:
    del config
    return bool(np.array_equal(values.ravel(), np.arange(values.size)))


POSITION_IDS = ((r"embeddings\.position_ids$", _is_arange),)
"""`WeightMap.buffers` of encoders: the number of each row of the position table."""


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
    "tied": "tie_word_embeddings",
}

# Checkpoints from before 2019 call a norm's scale gamma and its offset beta.
OLD_NORM_NAMES = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
