"""ALBERT (Lan et al., 2020, arXiv:1909.11942): BERT with narrow embeddings, and layers that share their parameters.

A group of layers has one set of parameters; every published model has one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules, pooled_rules
from jaxlm.models.encoder import (
    BERT_FIELDS,
    POSITION_IDS,
    Block,
    EncoderConfig,
    EncoderTrunk,
    Stack,
    decoder_copies,
    embedding_rules,
    masked_lm_rules,
    stack_rules,
)
from jaxlm.models.hf_config import check_encoder, read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.attention import Mask
from jaxlm.nn.heads import masked_lm, pooled_classifier, pooling, span_ends, token_classifier
from jaxlm.nn.layers import ComputeConfig, Key, split_key, take_columns
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack


@dataclass(frozen=True)
class AlbertConfig:
    vocab_size: int = 30000
    num_layers: int = 12
    num_groups: int = 1
    """Sets of parameters that the layers share: the first layers have the first, and so on in equal parts."""
    table_dim: int = 128
    """Width of the embedding tables."""
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    num_types: int = 2
    activation: str = "gelu_new"
    norm_eps: float = 1e-12
    dropout: float = 0.0
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.1
    init_std: float = 0.02
    pad_id: int = 0
    tied: bool = True
    """Logits of masked language modelling by the token table."""

    def __post_init__(self) -> None:
        if self.num_groups > self.num_layers:
            raise UserError(
                f"model config: {self.num_groups} groups of layers (num_groups; num_hidden_groups in config.json): "
                f"expected at most one for each of {self.num_layers} layers"
            )

    @property
    def group_sizes(self) -> list[int]:
        """The number of layers of each group."""
        share = self.num_layers / self.num_groups
        return [len(list(layers)) for _, layers in groupby(range(self.num_layers), lambda layer: int(layer / share))]


@dataclass(frozen=True)
class SharedConfig(EncoderConfig):
    """What the trunk reads of an `AlbertConfig`."""

    group_sizes: tuple[int, ...] = ()


class SharedStack(Stack):
    """All blocks. The parameters of the groups are stacked along a leading axis."""

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        segment_ids_BT: Int[Array, "B T"],
        slot_positions_BS: Int[Array, "B S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "B Q D"]:
        """Returns the states of all positions, or of `slot_positions` alone, as `encoder.Stack`."""
        sizes: tuple[int, ...] = cast(SharedConfig, self.config).group_sizes
        # Of the two sublayers' outputs only that of attention is dropped.
        block = Block(replace(self.config, dropout=0.0), self.compute)
        mask = Mask(segment_ids_BT, segment_ids_BT)
        params = declare_stack(self, "layers", init_stack(block, len(sizes), x_BTD, x_BTD, mask))

        x = x_BTD
        keys = split_key(key, len(sizes))
        for group, (num_layers, k) in enumerate(zip(sizes, keys, strict=True)):
            shared = jax.tree.map(lambda p, group=group: p[group], params)

            def apply(_: Any, x: Array, k: Key, shared: Any = shared) -> Any:
                return block.apply({"params": shared}, x, x, mask, k)

            def apply_at_slots(_: Any, x: Array, k: Key, shared: Any = shared) -> Any:
                slots_BSD = take_columns(x, slot_positions_BS)
                return block.apply({"params": shared}, slots_BSD, x, mask.at(slot_positions_BS), k)

            at_slots = slot_positions_BS is not None and group == len(sizes) - 1
            x = run_stack(apply, jnp.arange(num_layers), x, k, self.compute, apply_at_slots if at_slots else None)
        return x


def _trunk(config: AlbertConfig, compute: ComputeConfig) -> EncoderTrunk:
    c = config
    encoder = SharedConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions, num_types=c.num_types, table_dim=c.table_dim,
        num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=c.dropout, init_std=c.init_std, projects=True, group_sizes=tuple(c.group_sizes),
    )  # fmt: skip
    return EncoderTrunk(encoder, compute, SharedStack)


_FIELDS = {
    **BERT_FIELDS,
    "num_groups": "num_hidden_groups",
    "table_dim": "embedding_size",
    "classifier_dropout": "classifier_dropout_prob",
}
_BASE = AlbertConfig()
_XXLARGE = replace(_BASE, embed_dim=4096, num_heads=64, mlp_dim=16384)
# What Transformers assumes where a config.json is silent.
_DEFAULTS = write_hf(_XXLARGE, _FIELDS)


def _from_hf(config: Mapping[str, Any]) -> AlbertConfig:
    check_encoder(config)
    if config.get("inner_group_num", 1) != 1:
        raise UserError(
            f"config.json: inner_group_num={config['inner_group_num']!r:.60} is not supported; expected 1, one layer "
            "to a group, as all published models have"
        )
    return AlbertConfig(**read_hf(AlbertConfig, config, _FIELDS, _DEFAULTS))


_NAMES = {
    "q": "attention.query",
    "k": "attention.key",
    "v": "attention.value",
    "o": "attention.dense",
    "attention_norm": "attention.LayerNorm",
    "up": "ffn",
    "down": "ffn_output",
    "mlp_norm": "full_layer_layer_norm",
}
_POOLED = pooled_rules("albert.pooler", "classifier")

FAMILY = Family(
    name="albert",
    config=AlbertConfig,
    presets={
        "base": _BASE,
        "large": replace(_BASE, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
        "xlarge": replace(_BASE, num_layers=24, embed_dim=2048, num_heads=16, mlp_dim=8192),
        "xxlarge": _XXLARGE,
    },
    published={"base": 11_685_122, "large": 17_686_018, "xlarge": 58_728_962, "xxlarge": 222_603_778},
    trunk=_trunk,
    heads={
        "classification": Head(
            pooled_classifier("tanh", dropout_before=False), "AlbertForSequenceClassification", _POOLED, LABEL_PARAMS
        ),
        "token_classification": Head(
            token_classifier, "AlbertForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(span_ends, "AlbertForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            pooled_classifier("tanh", dropout_before=False), "AlbertForMultipleChoice", _POOLED, LABEL_PARAMS
        ),
        "embedding": Head(pooling, "AlbertModel"),
        "masked_lm": Head(
            masked_lm(),
            "AlbertForMaskedLM",
            masked_lm_rules("predictions.dense", "predictions.LayerNorm", "predictions"),
        ),
    },
    trunk_map=WeightMap(
        rules=(
            *embedding_rules("albert.embeddings."),
            Rule("trunk/project", "albert.encoder.embedding_hidden_mapping_in.weight", "d e -> e d"),
            Rule("trunk/project_bias", "albert.encoder.embedding_hidden_mapping_in.bias"),
            *stack_rules("albert.encoder.albert_layer_groups.{i}.albert_layers.0.", _NAMES),
        ),
        prefix="albert.",
        ignore=(r"^sop_classifier\.",),
        copies=decoder_copies("predictions", "albert.embeddings.word_embeddings.weight"),
        buffers=POSITION_IDS,
    ),
    from_hf=_from_hf,
    to_hf=lambda config: {**write_hf(config, _FIELDS), "inner_group_num": 1},
)
