"""BERT (Devlin et al., 2019, arXiv:1810.04805): config, modules, presets, HF table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules, pooled_rules
from jaxlm.models.encoder import (
    BERT_FIELDS,
    OLD_NORM_NAMES,
    POSITION_IDS,
    EncoderConfig,
    EncoderTrunk,
    decoder_copies,
    embedding_rules,
    masked_lm_rules,
    stack_rules,
)
from jaxlm.models.hf_config import check_encoder, read_hf, write_hf
from jaxlm.models.weight_map import WeightMap
from jaxlm.nn.heads import masked_lm, pooled_classifier, pooling, span_ends, token_classifier
from jaxlm.nn.layers import ComputeConfig


@dataclass(frozen=True)
class BertConfig:
    vocab_size: int = 30522
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    num_types: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    init_std: float = 0.02
    pad_id: int = 0
    tied: bool = True
    """Logits of masked language modelling by the token table."""


def _trunk(config: BertConfig, compute: ComputeConfig) -> EncoderTrunk:
    c = config
    encoder = EncoderConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions, num_types=c.num_types, table_dim=c.embed_dim,
        num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=c.dropout, init_std=c.init_std,
    )  # fmt: skip
    return EncoderTrunk(encoder, compute)


# What Transformers assumes where an older config.json is silent.
_DEFAULTS = write_hf(BertConfig(), BERT_FIELDS)


def _from_hf(config: Mapping[str, Any]) -> BertConfig:
    check_encoder(config)
    return BertConfig(**read_hf(BertConfig, config, BERT_FIELDS, _DEFAULTS))


_BASE = BertConfig()

FAMILY = Family(
    name="bert",
    config=BertConfig,
    presets={
        "tiny": replace(_BASE, num_layers=2, embed_dim=128, num_heads=2, mlp_dim=512),
        "mini": replace(_BASE, num_layers=4, embed_dim=256, num_heads=4, mlp_dim=1024),
        "small": replace(_BASE, num_layers=4, embed_dim=512, num_heads=8, mlp_dim=2048),
        "base": _BASE,
        "base-cased": replace(_BASE, vocab_size=28996),
        "large": replace(_BASE, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
    },
    published={
        "tiny": 4_386_178,
        "mini": 11_171_074,
        "small": 28_764_674,
        "base": 109_483_778,
        "base-cased": 108_311_810,
        "large": 335_143_938,
    },
    trunk=_trunk,
    heads={
        "classification": Head(
            pooled_classifier("tanh", dropout_before=False),
            "BertForSequenceClassification",
            pooled_rules("bert.pooler.dense", "classifier"),
            LABEL_PARAMS,
        ),
        "token_classification": Head(
            token_classifier, "BertForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(span_ends, "BertForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            pooled_classifier("tanh", dropout_before=False),
            "BertForMultipleChoice",
            pooled_rules("bert.pooler.dense", "classifier"),
            LABEL_PARAMS,
        ),
        "embedding": Head(pooling, "BertModel"),
        "masked_lm": Head(
            masked_lm(),
            "BertForMaskedLM",
            masked_lm_rules(
                "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"
            ),
        ),
    },
    trunk_map=WeightMap(
        rules=(*embedding_rules("bert.embeddings."), *stack_rules("bert.encoder.layer.{i}.")),
        prefix="bert.",
        ignore=(r"^cls\.seq_relationship\.",),
        copies=decoder_copies("cls.predictions", "bert.embeddings.word_embeddings.weight"),
        buffers=POSITION_IDS,
        aliases=OLD_NORM_NAMES,
    ),
    from_hf=_from_hf,
    to_hf=lambda config: write_hf(config, BERT_FIELDS),
)
