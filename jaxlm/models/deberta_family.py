"""DeBERTa-v2 and v3 in Hugging Face's terms: config.json, heads, key names, presets. The network: `models.deberta`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float

from jaxlm.errors import UserError
from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules, pooled_rules
from jaxlm.models.deberta import DebertaConfig, make_trunk
from jaxlm.models.encoder import (
    BERT_FIELDS,
    OLD_NORM_NAMES,
    POSITION_IDS,
    decoder_copies,
    embedding_rules,
    masked_lm_rules,
    stack_rules,
)
from jaxlm.models.hf_config import check_activation, check_encoder, check_value, read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.dropout import dropout
from jaxlm.nn.heads import Batch, LinearClassifier, PooledClassifier, masked_lm, pooling, span_ends
from jaxlm.nn.layers import ComputeConfig, Key, split_key


class ContextPooler(PooledClassifier):
    """[dropout] dense, activation, dropout, dense, with two rates."""

    pooler_dropout: float = 0.0

    def __call__(self, x_BSD: Float[Array, "B S D"], batch: Batch, key: Key = None) -> Float[Array, "B S C"]:
        before, after = split_key(key, 2)
        return super().__call__(dropout(x_BSD, self.pooler_dropout, before), batch, after)


def _pooled(config: DebertaConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    c = config
    rate = c.dropout if c.classifier_dropout is None else c.classifier_dropout
    return ContextPooler(num_outputs, c.pooler_activation, rate, False, c, compute, c.pooler_dropout)


def _token_classifier(config: DebertaConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    """HF's drops at the rate of the rest, not at `classifier_dropout`."""
    return LinearClassifier(num_outputs, config.dropout, True, "length", config, compute)


_FIELDS = {
    **BERT_FIELDS,
    "classifier_dropout": "cls_dropout",
    "pooler_dropout": "pooler_dropout",
    "pooler_activation": "pooler_hidden_act",
    "own_position_maps": "share_att_key",
    "absolute_positions": "position_biased_input",
}
# What Transformers assumes where config.json is silent; it is not what the published v3 checkpoints have.
_DEFAULTS = {
    **write_hf(DebertaConfig(), _FIELDS),
    "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24, "intermediate_size": 6144,
    "share_att_key": False, "position_biased_input": True,
}  # fmt: skip
_BOTH = ("p2c", "c2p")


def _from_hf(config: Mapping[str, Any]) -> DebertaConfig:
    check_encoder(config)
    check_activation(config.get("pooler_hidden_act") or "gelu", "pooler_hidden_act")
    _check_attention(config)
    values = read_hf(DebertaConfig, config, _FIELDS, _DEFAULTS)
    width, heads = values["embed_dim"], values["num_heads"]
    for key, size in (
        ("embedding_size", width),
        ("pooler_hidden_size", width),
        ("attention_head_size", width // heads),
    ):
        if config.get(key, size) not in (size, None):
            raise UserError(
                f"config.json: {key}={config[key]!r:.60} is not supported; expected {size}, as hidden_size has it"
            )
    norms = config.get("norm_rel_ebd") or "none"
    if norms not in ("none", "layer_norm"):
        raise UserError(f"config.json: norm_rel_ebd={norms!r:.60} is not supported; expected 'layer_norm' or 'none'")
    return DebertaConfig(**{
        **values,
        "own_position_maps": not values["own_position_maps"],
        # The head of `legacy: false` reads the token table, whatever tie_word_embeddings says.
        "tied": values["tied"] or config.get("legacy") is False,
        "num_buckets": _size(config, "num_buckets", "position_buckets"),
        "max_distance": _size(config, "max_distance", "max_relative_positions"),
        "normalized_positions": norms == "layer_norm",
    })  # fmt: skip


def _check_attention(config: Mapping[str, Any]) -> None:
    """Refuses attention that is not disentangled in both ways, and the convolution beside it."""
    if config.get("relative_attention", False) is not True:
        raise UserError("config.json: relative_attention=false is not supported; expected true")
    types = config.get("pos_att_type")
    found = types.lower().split("|") if isinstance(types, str) else types
    if not isinstance(found, list) or {str(kind).strip() for kind in found} != set(_BOTH):
        raise UserError(f"config.json: pos_att_type={types!r:.60} is not supported; expected {'|'.join(_BOTH)!r}")
    if (kernel := config.get("conv_kernel_size", 0)) not in (0, None):
        raise UserError(
            f"config.json: conv_kernel_size={kernel!r:.60} is not supported: a convolution beside the first layer, as "
            "DeBERTa-v2 xlarge has it; expected 0"
        )


def _size(config: Mapping[str, Any], ours: str, theirs: str) -> int | None:
    """A size that -1 or 0 stand for the absence of."""
    value = config.get(theirs, -1)
    return None if value in (-1, 0, None) else check_value(DebertaConfig, ours, theirs, value)


def _to_hf(config: DebertaConfig) -> dict[str, Any]:
    return {
        **write_hf(config, _FIELDS),
        "share_att_key": not config.own_position_maps,
        "position_buckets": config.num_buckets or -1,
        "max_relative_positions": config.max_distance or -1,
        "norm_rel_ebd": "layer_norm" if config.normalized_positions else "none",
        "relative_attention": True,
        "pos_att_type": list(_BOTH),
        "legacy": True,
    }


_TABLE = "deberta.embeddings.word_embeddings.weight"
_SELF = "deberta.encoder.layer.{i}.attention.self."
_NAMES = {
    "q": "attention.self.query_proj",
    "k": "attention.self.key_proj",
    "v": "attention.self.value_proj",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


def _position_rules() -> tuple[Rule, ...]:
    layers, maps = "trunk/stack/layers/position_", (("q", "pos_query_proj"), ("k", "pos_key_proj"))
    weights = (Rule(f"{layers}{ours}", f"{_SELF}{theirs}.weight", "(n h) d -> d n h") for ours, theirs in maps)
    biases = (Rule(f"{layers}{ours}_bias", f"{_SELF}{theirs}.bias", "(n h) -> n h") for ours, theirs in maps)
    return (
        Rule("trunk/stack/positions", "deberta.encoder.rel_embeddings.weight"),
        Rule("trunk/stack/positions_norm_scale", "deberta.encoder.LayerNorm.weight"),
        Rule("trunk/stack/positions_norm_bias", "deberta.encoder.LayerNorm.bias"),
        *weights,
        *biases,
    )


_BASE = DebertaConfig()

FAMILY = Family(
    name="deberta-v2",
    config=DebertaConfig,
    presets={
        "v3-base": _BASE,
        "v3-xsmall": replace(_BASE, embed_dim=384, num_heads=6, mlp_dim=1536),
        "v3-small": replace(_BASE, num_layers=6),
        "v3-large": replace(_BASE, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
        "mdeberta-v3-base": replace(_BASE, vocab_size=251000),
    },
    published={
        "v3-base": 184_423_682,
        "v3-xsmall": 70_830_722,
        "v3-small": 141_896_450,
        "v3-large": 435_063_810,
        "mdeberta-v3-base": 278_810_882,
    },
    trunk=make_trunk,
    heads={
        "classification": Head(
            _pooled,
            "DebertaV2ForSequenceClassification",
            pooled_rules("pooler.dense", "classifier"),
            LABEL_PARAMS,
        ),
        "token_classification": Head(
            _token_classifier, "DebertaV2ForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(span_ends, "DebertaV2ForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            _pooled, "DebertaV2ForMultipleChoice", pooled_rules("pooler.dense", "classifier"), LABEL_PARAMS
        ),
        "embedding": Head(pooling, "DebertaV2Model"),
        "masked_lm": Head(
            masked_lm(),
            "DebertaV2ForMaskedLM",
            masked_lm_rules(
                "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions"
            ),
        ),
    },
    trunk_map=WeightMap(
        rules=(
            *embedding_rules("deberta.embeddings."),
            *_position_rules(),
            *stack_rules("deberta.encoder.layer.{i}.", _NAMES),
        ),
        prefix="deberta.",
        # The detector of replaced tokens, and a table that models without absolute positions have and never read.
        ignore=(r"^mask_predictions\.", r"^deberta\.embeddings\.position_embeddings\.weight$"),
        copies=decoder_copies("cls.predictions", _TABLE),
        buffers=POSITION_IDS,
        # The masked-LM head of `legacy: false`, and of the published v3 checkpoints.
        aliases=(
            *OLD_NORM_NAMES,
            (r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.", r"cls.predictions.transform.\1."),
            (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
        ),
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
)
