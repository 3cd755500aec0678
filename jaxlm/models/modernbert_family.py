"""ModernBERT as Hugging Face has it: presets, config.json both ways, heads, names of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from flax import linen as nn

from jaxlm.errors import UserError
from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules
from jaxlm.models.hf_config import check_activation, check_encoder, read_hf, write_hf
from jaxlm.models.modernbert import (
    EVERY,
    POOLING,
    Classifier,
    MaskedLanguageModel,
    ModernBertConfig,
    ModernBertTrunk,
    PredictionHead,
    layer_pattern,
)
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import pooling
from jaxlm.nn.layers import ComputeConfig

_WINDOWED, _FULL = "sliding_attention", "full_attention"
# Our config field -> HF's.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_activation",
    "norm_eps": "norm_eps",
    "local_attention": "local_attention",
    "rope_theta": "global_rope_theta",
    "local_rope_theta": "local_rope_theta",
    "embed_dropout": "embedding_dropout",
    "dropout": "mlp_dropout",
    "attention_dropout": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "classifier_activation": "classifier_activation",
    "pooling": "classifier_pooling",
    "init_std": "initializer_range",
    "pad_id": "pad_token_id",
    "tied": "tie_word_embeddings",
}
# What Transformers assumes where a config.json is silent.
_DEFAULTS = {**write_hf(ModernBertConfig(), _FIELDS), "classifier_pooling": "cls"}
_FIXED = {
    "attention_bias": False, "mlp_bias": False, "norm_bias": False, "classifier_bias": False, "decoder_bias": True,
}  # fmt: skip
_KINDS: dict[str, Literal["global_rope_theta", "local_rope_theta"]] = {
    _FULL: "global_rope_theta",
    _WINDOWED: "local_rope_theta",
}


def _from_hf(config: Mapping[str, Any]) -> ModernBertConfig:
    check_encoder(config, "hidden_activation")
    check_activation(config.get("classifier_activation", "gelu"), "classifier_activation")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"config.json: {key}={config[key]!r:.60} is not supported; expected {str(value).lower()}")
    values = read_hf(ModernBertConfig, {**config, **_read_rope(config)}, _FIELDS, _DEFAULTS)
    if values["pooling"] not in POOLING:
        raise UserError(f"config.json: classifier_pooling: expected cls or mean, found {values['pooling']!r:.60}")
    local = _read_layers(config, values["num_layers"])
    return ModernBertConfig(**values, windowed_layers=None if local == layer_pattern(len(local)) else local)


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The bases by their older names."""
    said = config.get("rope_parameters") or {}
    if config.get("rope_scaling"):
        raise UserError("config.json: rope_scaling is not supported for the model type modernbert; expected null")
    found = {}
    for kind, name in _KINDS.items():
        own = said.get(kind) if isinstance(said, Mapping) else said
        if own is None:
            continue
        if not isinstance(own, Mapping) or own.get("rope_type", "default") != "default":
            raise UserError(f"config.json: rope_parameters: {kind}: expected the rope_type default, found {own!r:.60}")
        if "rope_theta" in own:
            found[name] = own["rope_theta"]
    return found


def _read_layers(config: Mapping[str, Any], num_layers: int) -> tuple[bool, ...]:
    """For each layer, whether it is local."""
    kinds = config.get("layer_types")
    if kinds is None:
        every = config.get("global_attn_every_n_layers", EVERY)
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise UserError(f"config.json: global_attn_every_n_layers: expected 1 or more, found {every!r:.60}")
        return layer_pattern(num_layers, every)
    if not isinstance(kinds, list) or len(kinds) != num_layers or any(kind not in (_WINDOWED, _FULL) for kind in kinds):
        raise UserError(
            f"config.json: layer_types: expected {_FULL} or {_WINDOWED} for each of {num_layers} layers, "
            f"found {kinds!r:.60}"
        )
    return tuple(kind == _WINDOWED for kind in kinds)


def _to_hf(config: ModernBertConfig) -> dict[str, Any]:
    """In the words of Transformers 5 and, where they have them, of earlier versions."""
    values = {**write_hf(config, _FIELDS), **_FIXED}
    local = config.local_layers
    values["layer_types"] = [_WINDOWED if is_local else _FULL for is_local in local]
    every = next((n for n in (EVERY, *range(1, len(local) + 1)) if layer_pattern(len(local), n) == local), None)
    if every is not None:
        values["global_attn_every_n_layers"] = every
    values["rope_parameters"] = {
        kind: {"rope_type": "default", "rope_theta": values[name]} for kind, name in _KINDS.items()
    }
    return values


_LAYER = "model.layers.{i}."
_HEAD_RULES = (Rule("head/dense", "head.dense.weight", "e d -> d e"), Rule("head/norm_scale", "head.norm.weight"))
_LABELLED = (*_HEAD_RULES, *out_rules("classifier"))
_BASE = ModernBertConfig()


def _classifier(config: ModernBertConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    return Classifier(num_outputs, config, compute)


def _token_classifier(config: ModernBertConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    return PredictionHead(num_outputs, "length", config, compute)


def _masked_lm(config: ModernBertConfig, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    del num_outputs
    return MaskedLanguageModel(config, compute)


FAMILY = Family(
    name="modernbert",
    config=ModernBertConfig,
    presets={
        "base": _BASE,
        "large": replace(_BASE, num_layers=28, embed_dim=1024, num_heads=16, mlp_dim=2624),
    },
    published={"base": 149_606_402, "large": 395_833_346},
    trunk=ModernBertTrunk,
    heads={
        "classification": Head(
            _classifier, "ModernBertForSequenceClassification", _LABELLED, LABEL_PARAMS, is_network=True
        ),
        "token_classification": Head(_token_classifier, "ModernBertForTokenClassification", _LABELLED, LABEL_PARAMS),
        "question_answering": Head(_token_classifier, "ModernBertForQuestionAnswering", _LABELLED),
        "multiple_choice": Head(_classifier, "ModernBertForMultipleChoice", _LABELLED, LABEL_PARAMS, is_network=True),
        "embedding": Head(pooling, "ModernBertModel"),
        "masked_lm": Head(
            _masked_lm,
            "ModernBertForMaskedLM",
            (*_HEAD_RULES, Rule("head/unembed", "decoder.weight"), Rule("head/vocab_bias", "decoder.bias")),
        ),
    },
    trunk_map=WeightMap(
        rules=(
            Rule("trunk/tokens", "model.embeddings.tok_embeddings.weight"),
            Rule("trunk/embed_norm_scale", "model.embeddings.norm.weight"),
            Rule("trunk/attention_norm_scale", f"{_LAYER}attn_norm.weight", layer_offset=1),
            Rule("trunk/layers/qkv", f"{_LAYER}attn.Wqkv.weight", "(three n h) d -> d three n h"),
            Rule("trunk/layers/o", f"{_LAYER}attn.Wo.weight", "d (n h) -> n h d"),
            Rule("trunk/layers/mlp_norm_scale", f"{_LAYER}mlp_norm.weight"),
            Rule("trunk/layers/gate_up", f"{_LAYER}mlp.Wi.weight", "(two f) d -> d two f"),
            Rule("trunk/layers/down", f"{_LAYER}mlp.Wo.weight", "d f -> f d"),
            Rule("trunk/final_norm_scale", "model.final_norm.weight"),
        ),
        prefix="model.",
        copies=(("decoder.weight", "model.embeddings.tok_embeddings.weight"),),
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
)
