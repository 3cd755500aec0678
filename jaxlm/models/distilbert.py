"""DistilBERT (Sanh et al., 2019, arXiv:1910.01108): BERT without token types, pooler and attention output dropout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import linen as nn

from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules, pooled_rules
from jaxlm.models.encoder import POSITION_IDS, EncoderConfig, EncoderTrunk, masked_lm_rules, stack_rules
from jaxlm.models.hf_config import check_encoder, read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import LinearClassifier, masked_lm, pooled_classifier, pooling
from jaxlm.nn.layers import ComputeConfig

_NORM_EPS = 1e-12


@dataclass(frozen=True)
class DistilBertConfig:
    vocab_size: int = 30522
    num_layers: int = 6
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.2
    answer_dropout: float = 0.1
    """In front of the head for question answering."""
    init_std: float = 0.02
    pad_id: int = 0
    tied: bool = True
    """Logits of masked language modelling by the token table."""


def _trunk(config: DistilBertConfig, compute: ComputeConfig) -> EncoderTrunk:
    c = config
    encoder = EncoderConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions, num_types=0, table_dim=c.embed_dim,
        num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=_NORM_EPS, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=0.0, init_std=c.init_std,
    )  # fmt: skip
    return EncoderTrunk(encoder, compute)


# `sinusoidal_pos_embds` is left out: it only says what the position table held before pretraining.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layers",
    "embed_dim": "dim",
    "num_heads": "n_heads",
    "mlp_dim": "hidden_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "classifier_dropout": "seq_classif_dropout",
    "answer_dropout": "qa_dropout",
    "init_std": "initializer_range",
    "pad_id": "pad_token_id",
    "tied": "tie_word_embeddings",
}
_NAMES = {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "o": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}
_DEFAULTS = write_hf(DistilBertConfig(), _FIELDS)


def _from_hf(config: Mapping[str, Any]) -> DistilBertConfig:
    check_encoder(config, "activation")
    return DistilBertConfig(**read_hf(DistilBertConfig, config, _FIELDS, _DEFAULTS))


def _token_classifier(config: DistilBertConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """HF's drops at the rate of the rest, not at `classifier_dropout`."""
    return LinearClassifier(num_outputs, config.dropout, True, "length", config, compute)


def _span_ends(config: DistilBertConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    return LinearClassifier(num_outputs, config.answer_dropout, True, "length", config, compute)


_BASE = DistilBertConfig()

FAMILY = Family(
    name="distilbert",
    config=DistilBertConfig,
    presets={
        "base": _BASE,
        "base-cased": replace(_BASE, vocab_size=28996),
        "base-multilingual-cased": replace(_BASE, vocab_size=119547),
    },
    published={"base": 66_955_010, "base-cased": 65_783_042, "base-multilingual-cased": 135_326_210},
    trunk=_trunk,
    heads={
        "classification": Head(
            pooled_classifier("relu", dropout_before=False),
            "DistilBertForSequenceClassification",
            pooled_rules("pre_classifier", "classifier"),
            LABEL_PARAMS,
        ),
        "token_classification": Head(
            _token_classifier, "DistilBertForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(_span_ends, "DistilBertForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            pooled_classifier("relu", dropout_before=False),
            "DistilBertForMultipleChoice",
            pooled_rules("pre_classifier", "classifier"),
            LABEL_PARAMS,
        ),
        "embedding": Head(pooling, "DistilBertModel"),
        "masked_lm": Head(
            masked_lm(norm_eps=_NORM_EPS),
            "DistilBertForMaskedLM",
            masked_lm_rules("vocab_transform", "vocab_layer_norm", "vocab_projector", own_bias=False),
        ),
    },
    trunk_map=WeightMap(
        rules=(
            Rule("trunk/tokens", "distilbert.embeddings.word_embeddings.weight"),
            Rule("trunk/positions", "distilbert.embeddings.position_embeddings.weight"),
            Rule("trunk/embed_norm_scale", "distilbert.embeddings.LayerNorm.weight"),
            Rule("trunk/embed_norm_bias", "distilbert.embeddings.LayerNorm.bias"),
            *stack_rules("distilbert.transformer.layer.{i}.", _NAMES),
        ),
        prefix="distilbert.",
        copies=(("vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),),
        buffers=POSITION_IDS,
    ),
    from_hf=_from_hf,
    to_hf=lambda config: write_hf(config, _FIELDS),
)
