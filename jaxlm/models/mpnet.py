"""MPNet (Song et al., 2020, arXiv:2004.09297): RoBERTa's embeddings, and T5's relative positions, which every layer
adds to its logits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlm.errors import UserError
from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules, pooled_rules
from jaxlm.models.encoder import (
    BERT_FIELDS,
    OLD_NORM_NAMES,
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
from jaxlm.nn.layers import ComputeConfig, Key, normal, param
from jaxlm.nn.relative_positions import relative_bias
from jaxlm.parallel.sharding import constrain

_FIRST_POSITION = 2
"""Row of the position table for an example's first token, whatever the id of padding."""
_NUM_BUCKETS, _MAX_DISTANCE = 32, 128


@dataclass(frozen=True)
class MPNetConfig:
    vocab_size: int = 30527
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    """Longest example; the position table has two more rows, which no token reads."""
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    """Where it is not `dropout`; HF's config.json has no place for it."""
    init_std: float = 0.02
    pad_id: int = 1
    tied: bool = True
    """Logits of masked language modelling by the token table."""


class RelativeBlock(Block):
    """A block that adds a bias for each distance to its logits."""

    def relative_bias(
        self, q_BQNH: jax.Array, k_BTNH: jax.Array, mask: Mask, relative: Any, key: Key
    ) -> tuple[jax.Array | None, float | None]:
        """The bias of all queries, `relative` [1, N, T, T], or of those in the mask's columns."""
        if mask.columns_BT is None:
            return relative, None
        rows_NBQT = jnp.take(relative[0], mask.columns_BT, axis=1)
        axes = ("batch", "act_heads", "length", "kv_length")
        return constrain(rows_NBQT.swapaxes(0, 1), axes, self.compute.rules), None


class RelativeStack(Stack):
    block: type[Block] = RelativeBlock

    def relative_positions(self, length: int) -> Float[Array, "1 N T T"]:
        """The bias of each distance, which all layers share."""
        c = self.config
        shape, axes = (_NUM_BUCKETS, c.num_heads), ("buckets", "heads")
        table = param(self, "relative_bias", normal(c.init_std), shape, axes)
        bias = relative_bias(table, length, max_distance=_MAX_DISTANCE, bidirectional=True)
        return constrain(bias, (None, "act_heads", "length", "kv_length"), self.compute.rules)


def _trunk(config: MPNetConfig, compute: ComputeConfig) -> EncoderTrunk:
    c = config
    encoder = EncoderConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions + _FIRST_POSITION, num_types=0, table_dim=c.embed_dim,
        num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=c.dropout, init_std=c.init_std, first_position=_FIRST_POSITION,
    )  # fmt: skip
    return EncoderTrunk(encoder, compute, RelativeStack)


_FIELDS = {ours: theirs for ours, theirs in BERT_FIELDS.items() if ours not in ("num_types", "classifier_dropout")}
_DEFAULTS = {**write_hf(MPNetConfig(), _FIELDS), "max_position_embeddings": 512}


def _from_hf(config: Mapping[str, Any]) -> MPNetConfig:
    check_encoder(config)
    buckets = config.get("relative_attention_num_buckets", _NUM_BUCKETS)
    if buckets != _NUM_BUCKETS:
        raise UserError(
            f"config.json: relative_attention_num_buckets={buckets!r:.60} is not supported; expected {_NUM_BUCKETS}: "
            "with so many Transformers computes, whatever the config says"
        )
    values = read_hf(MPNetConfig, config, _FIELDS, _DEFAULTS)
    rows = values["max_positions"]
    if rows <= _FIRST_POSITION:
        raise UserError(f"config.json: max_position_embeddings={rows}: expected more than {_FIRST_POSITION}")
    return MPNetConfig(**{**values, "max_positions": rows - _FIRST_POSITION})


def _to_hf(config: MPNetConfig) -> dict[str, Any]:
    rows = config.max_positions + _FIRST_POSITION
    return {
        **write_hf(replace(config, max_positions=rows), _FIELDS),
        "relative_attention_num_buckets": _NUM_BUCKETS,
    }


_NAMES = {
    **{name: f"attention.attn.{name}" for name in "qkvo"},
    "attention_norm": "attention.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}

FAMILY = Family(
    name="mpnet",
    config=MPNetConfig,
    presets={"base": MPNetConfig()},
    published={"base": 109_488_002},
    trunk=_trunk,
    heads={
        "classification": Head(
            pooled_classifier("tanh", dropout_before=True),
            "MPNetForSequenceClassification",
            pooled_rules("classifier.dense", "classifier.out_proj"),
            LABEL_PARAMS,
        ),
        "token_classification": Head(
            token_classifier, "MPNetForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(span_ends, "MPNetForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            pooled_classifier("tanh", dropout_before=False),
            "MPNetForMultipleChoice",
            pooled_rules("mpnet.pooler.dense", "classifier"),
            LABEL_PARAMS,
        ),
        "embedding": Head(pooling, "MPNetModel"),
        "masked_lm": Head(
            masked_lm(activation="gelu"),  # whatever the config's
            "MPNetForMaskedLM",
            masked_lm_rules("lm_head.dense", "lm_head.layer_norm", "lm_head"),
        ),
    },
    trunk_map=WeightMap(
        rules=(
            *embedding_rules("mpnet.embeddings."),
            Rule("trunk/stack/relative_bias", "mpnet.encoder.relative_attention_bias.weight"),
            *stack_rules("mpnet.encoder.layer.{i}.", _NAMES),
        ),
        prefix="mpnet.",
        ignore=(r"^mpnet\.pooler\.",),
        copies=decoder_copies("lm_head", "mpnet.embeddings.word_embeddings.weight"),
        buffers=POSITION_IDS,
        aliases=OLD_NORM_NAMES,
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
)
