"""RoBERTa (Liu et al., 2019, arXiv:1907.11692) and XLM-R (Conneau et al., 2020, arXiv:1911.02116): BERT's network with
positions counted from pad_id + 1, and a head of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxlm.errors import UserError
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
class RobertaConfig:
    vocab_size: int = 50265
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    """Longest example; the position table has pad_id + 1 more rows, which no token reads."""
    num_types: int = 1
    activation: str = "gelu"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    init_std: float = 0.02
    pad_id: int = 1
    tied: bool = True
    """Logits of masked language modelling by the token table."""


def _trunk(config: RobertaConfig, compute: ComputeConfig) -> EncoderTrunk:
    c = config
    encoder = EncoderConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions + c.pad_id + 1, num_types=c.num_types,
        table_dim=c.embed_dim, num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=c.dropout, init_std=c.init_std, first_position=c.pad_id + 1,
    )  # fmt: skip
    return EncoderTrunk(encoder, compute)


# What Transformers assumes where an older config.json is silent; it is not what the published checkpoints have.
_DEFAULTS = {
    **write_hf(RobertaConfig(), BERT_FIELDS),
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
del _DEFAULTS["vocab_size"]  # differs between the two model types


def _from_hf(config: Mapping[str, Any]) -> RobertaConfig:
    check_encoder(config)
    values = read_hf(RobertaConfig, config, BERT_FIELDS, _DEFAULTS)
    rows, offset = values["max_positions"], values["pad_id"] + 1
    if rows <= offset:
        raise UserError(
            f"config.json: max_position_embeddings={rows} leaves no position above pad_token_id={offset - 1}"
        )
    return RobertaConfig(**{**values, "max_positions": rows - offset})


def _to_hf(config: RobertaConfig) -> dict[str, Any]:
    return write_hf(replace(config, max_positions=config.max_positions + config.pad_id + 1), BERT_FIELDS)


def _heads(name: str) -> dict[str, Head]:
    """Heads whose HF classes are called `name`ForMaskedLM and so on."""
    return {
        "classification": Head(
            pooled_classifier("tanh", dropout_before=True),
            f"{name}ForSequenceClassification",
            pooled_rules("classifier.dense", "classifier.out_proj"),
            LABEL_PARAMS,
        ),
        "token_classification": Head(
            token_classifier, f"{name}ForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(span_ends, f"{name}ForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            pooled_classifier("tanh", dropout_before=False),
            f"{name}ForMultipleChoice",
            pooled_rules("roberta.pooler.dense", "classifier"),
            LABEL_PARAMS,
        ),
        "embedding": Head(pooling, f"{name}Model"),
        "masked_lm": Head(
            masked_lm(activation="gelu"),  # whatever the config's
            f"{name}ForMaskedLM",
            masked_lm_rules("lm_head.dense", "lm_head.layer_norm", "lm_head"),
        ),
    }


_BASE = RobertaConfig()
_LARGE = replace(_BASE, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096)
_XLM_VOCAB = 250002

FAMILY = Family(
    name="roberta",
    config=RobertaConfig,
    presets={"base": _BASE, "large": _LARGE},
    published={"base": 124_647_170, "large": 355_361_794},
    trunk=_trunk,
    heads=_heads("Roberta"),
    trunk_map=WeightMap(
        rules=(*embedding_rules("roberta.embeddings."), *stack_rules("roberta.encoder.layer.{i}.")),
        prefix="roberta.",
        ignore=(r"^roberta\.pooler\.",),
        copies=decoder_copies("lm_head", "roberta.embeddings.word_embeddings.weight"),
        buffers=POSITION_IDS,
        aliases=OLD_NORM_NAMES,
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
)

XLM_FAMILY = replace(
    FAMILY,
    name="xlm-roberta",
    presets={"base": replace(_BASE, vocab_size=_XLM_VOCAB), "large": replace(_LARGE, vocab_size=_XLM_VOCAB)},
    published={"base": 278_045_186, "large": 559_892_482},
    heads=_heads("XLMRoberta"),
)
