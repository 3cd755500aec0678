"""The HF model types that are Llama's network by configuration: llama, mistral, qwen2, qwen3. Presets, config.json both
ways, HF rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.models.base import CAUSAL_INPUTS, LABEL_PARAMS, Family, Head, out_rules
from jaxlm.models.hf_config import check_activation, check_value, read_hf, write_hf
from jaxlm.models.llama import LlamaConfig, LlamaTrunk, init_cache, rope_frequencies
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import causal_lm, linear_classifier, pooling, token_classifier

# Our config field -> HF's.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "mlp_dim": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "classifier_dropout": "classifier_dropout",
    "tied": "tie_word_embeddings",
    "init_std": "initializer_range",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
_ROPE_FIELDS = {
    "default": {},
    "linear": {"rope_factor": "factor"},
    "llama3": {
        "rope_factor": "factor",
        "rope_low_factor": "low_freq_factor",
        "rope_high_factor": "high_freq_factor",
        "rope_original_positions": "original_max_position_embeddings",
    },
}
_ATTENTION_BIAS = {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
_WINDOWED, _FULL = "sliding_attention", "full_attention"
# What Transformers assumes where a config.json is silent; it is not what the published checkpoints have.
_DEFAULTS = {
    "vocab_size": 32000, "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": None, "head_dim": None, "intermediate_size": 11008, "max_position_embeddings": 2048,
    "hidden_act": "silu", "rms_norm_eps": 1e-6, "hidden_dropout": 0.0, "attention_dropout": 0.0,
    "classifier_dropout": 0.0, "tie_word_embeddings": False, "initializer_range": 0.02,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
# Keys of which null means none, whatever an absent one means.
_NULLS = dict.fromkeys(("num_key_value_heads", "head_dim", "bos_token_id", "eos_token_id", "sliding_window"))
_QWEN_DEFAULTS = {
    **_DEFAULTS, "vocab_size": 151936, "num_key_value_heads": 32, "intermediate_size": 22016,
    "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip


@dataclass(frozen=True)
class _Dialect:
    """How one HF model type says, or leaves unsaid, what the config holds."""

    model_type: str
    defaults: Mapping[str, Any]
    fields: Mapping[str, str]
    """Beyond `_FIELDS`."""
    fixed: Mapping[str, Any]
    """Config fields that are the same in every model of this type."""

    def from_hf(self, config: Mapping[str, Any]) -> LlamaConfig:
        config = {**self.defaults, **config}
        names = {**_FIELDS, **self.fields}
        values = read_hf(LlamaConfig, config, names, {**self.defaults, **_NULLS})
        values |= {**self.fixed, **_read_rope(config)}
        if "use_sliding_window" in self.defaults:
            values |= _read_windows(config)
        check_activation(values["activation"], "hidden_act")
        return _canonical(LlamaConfig(**values))

    def to_hf(self, config: LlamaConfig) -> dict[str, Any]:
        """Raises UserError where this model type has no words for the config."""
        values = write_hf(config, {**_FIELDS, **self.fields})
        _, values["num_key_value_heads"], values["head_dim"] = config.heads
        # Written as before Transformers 5, which reads it too.
        values["rope_theta"], values["rope_scaling"] = config.rope_theta, None
        if config.rope_type != "default":
            scaling = write_hf(config, _ROPE_FIELDS[config.rope_type])
            values["rope_scaling"] = {"rope_type": config.rope_type, **scaling}
        if "use_sliding_window" in self.defaults:
            values |= _write_windows(config)
        meant, said = vars(_canonical(config)), vars(self.from_hf(values))
        unsaid = [f"{name}={value}" for name, value in meant.items() if said[name] != value]
        if unsaid:
            raise UserError(f"model config: no {self.model_type} model has {', '.join(unsaid)}")
        return values


def _canonical(config: LlamaConfig) -> LlamaConfig:
    """The same architecture, said in one way only."""
    num_heads, num_kv_heads, head_dim = config.heads
    layers = config.windowed_layers
    if config.window is None or layers is not None and not any(layers):
        config = replace(config, window=None, windowed_layers=None)
    elif layers is not None and all(layers):
        config = replace(config, windowed_layers=None)
    unread = _ROPE_FIELDS["llama3"].keys() - _ROPE_FIELDS[config.rope_type].keys()
    return replace(
        config,
        num_kv_heads=None if num_kv_heads == num_heads else num_kv_heads,
        head_dim=None if head_dim * num_heads == config.embed_dim else head_dim,
        **{f.name: f.default for f in fields(LlamaConfig) if f.name in unread},
    )


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_` fields, of rope_parameters (Transformers 5) or of rope_theta and rope_scaling (before)."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise UserError(f"config.json: rope_scaling and rope_parameters: expected an object, found {rope!r}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    known = isinstance(kind, str) and kind in _ROPE_FIELDS
    if not known or any(isinstance(value, Mapping) for value in rope.values()):
        found = "one for each type of layer" if known else repr(kind)
        raise UserError(f"config.json: rope_type {found} is not supported; expected one of {', '.join(_ROPE_FIELDS)}")
    for where in (config, rope):
        if where.get("partial_rotary_factor", 1.0) not in (None, 1.0):
            raise UserError(f"config.json: partial_rotary_factor={where['partial_rotary_factor']} is not supported")
    given = config.get("original_max_position_embeddings")
    original = {"original_max_position_embeddings": config["max_position_embeddings"] if given is None else given}
    said = {**original, **rope} if given is None else {**rope, **original}
    values = read_hf(LlamaConfig, said, _ROPE_FIELDS[kind], {})
    theta = rope.get("rope_theta", config.get("rope_theta"))
    theta = None if theta is None else check_value(LlamaConfig, "rope_theta", "rope_theta", theta)
    return {"rope_type": kind, "rope_theta": 10000.0 if theta is None else theta, **values}


def _read_windows(config: Mapping[str, Any]) -> dict[str, Any]:
    """`window` and `windowed_layers` of Qwen, whose first max_window_layers see everything, or of layer_types."""
    window = config["sliding_window"] if config["use_sliding_window"] else None
    if window is not None:
        window = check_value(LlamaConfig, "window", "sliding_window", window)
    num_layers = config["num_hidden_layers"]
    kinds = config.get("layer_types")
    if kinds is not None and not isinstance(kinds, list):
        raise UserError(f"config.json: layer_types: expected a list, found {kinds!r}")
    if kinds is None:
        first = num_layers if window is None else config["max_window_layers"]
        if type(first) is not int:
            raise UserError(f"config.json: max_window_layers: expected a whole number, found {first!r}")
        kinds = [_FULL if i < first else _WINDOWED for i in range(num_layers)]
    for kind in kinds:
        if kind not in (_FULL, _WINDOWED):
            raise UserError(f"config.json: layer_types has {kind!r}; expected {_FULL} or {_WINDOWED}")
    if window is None and _WINDOWED in kinds:
        raise UserError(f"config.json: layer_types has {_WINDOWED} without use_sliding_window and sliding_window")
    return {"window": window, "windowed_layers": tuple(kind == _WINDOWED for kind in kinds)}


def _write_windows(config: LlamaConfig) -> dict[str, Any]:
    """The inverse of `_read_windows`."""
    windowed = config.windowed_layers or (config.window is not None,) * config.num_layers
    return {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": windowed.index(True) if any(windowed) else config.num_layers,
        "layer_types": [_WINDOWED if here else _FULL for here in windowed],
    }


def _are_frequencies(values: np.ndarray, config: LlamaConfig) -> bool:
    """Whether rotary frequencies, perhaps rounded to half precision, are those that the config means."""
    expected = rope_frequencies(config)
    return values.shape == expected.shape and np.allclose(values, expected, rtol=1e-2, atol=1e-7)


_TRUNK_MAP = WeightMap(
    rules=(
        Rule("trunk/tokens", "model.embed_tokens.weight"),
        Rule("trunk/layers/attention_norm_scale", "model.layers.{i}.input_layernorm.weight"),
        Rule("trunk/layers/q", "model.layers.{i}.self_attn.q_proj.weight", "(n h) d -> d n h"),
        Rule("trunk/layers/q_bias", "model.layers.{i}.self_attn.q_proj.bias", "(n h) -> n h"),
        Rule("trunk/layers/q_norm_scale", "model.layers.{i}.self_attn.q_norm.weight"),
        Rule("trunk/layers/k", "model.layers.{i}.self_attn.k_proj.weight", "(k h) d -> d k h"),
        Rule("trunk/layers/k_bias", "model.layers.{i}.self_attn.k_proj.bias", "(k h) -> k h"),
        Rule("trunk/layers/k_norm_scale", "model.layers.{i}.self_attn.k_norm.weight"),
        Rule("trunk/layers/v", "model.layers.{i}.self_attn.v_proj.weight", "(k h) d -> d k h"),
        Rule("trunk/layers/v_bias", "model.layers.{i}.self_attn.v_proj.bias", "(k h) -> k h"),
        Rule("trunk/layers/o", "model.layers.{i}.self_attn.o_proj.weight", "d (n h) -> n h d"),
        Rule("trunk/layers/o_bias", "model.layers.{i}.self_attn.o_proj.bias"),
        Rule("trunk/layers/mlp_norm_scale", "model.layers.{i}.post_attention_layernorm.weight"),
        Rule("trunk/layers/gate", "model.layers.{i}.mlp.gate_proj.weight", "f d -> d f"),
        Rule("trunk/layers/gate_bias", "model.layers.{i}.mlp.gate_proj.bias"),
        Rule("trunk/layers/up", "model.layers.{i}.mlp.up_proj.weight", "f d -> d f"),
        Rule("trunk/layers/up_bias", "model.layers.{i}.mlp.up_proj.bias"),
        Rule("trunk/layers/down", "model.layers.{i}.mlp.down_proj.weight", "d f -> f d"),
        Rule("trunk/layers/down_bias", "model.layers.{i}.mlp.down_proj.bias"),
        Rule("trunk/final_norm_scale", "model.norm.weight"),
    ),
    prefix="model.",
    ignore=(r"^qa_outputs\.",),
    copies=(("lm_head.weight", "model.embed_tokens.weight"),),
    buffers=((r"\.rotary_emb\.inv_freq$", _are_frequencies),),
    aliases=((r"^transformer\.", "model."),),  # LlamaForQuestionAnswering
)


def _family(dialect: _Dialect, name: str, presets: Mapping[str, Any], published: Mapping[str, int]) -> Family:
    """One HF model type; its classes are called `name`ForCausalLM and so on."""
    return Family(
        name=dialect.model_type,
        config=LlamaConfig,
        presets=presets,
        published=published,
        trunk=LlamaTrunk,
        heads={
            "causal_lm": Head(causal_lm, f"{name}ForCausalLM", (Rule("head/unembed", "lm_head.weight"),)),
            "classification": Head(
                linear_classifier, f"{name}ForSequenceClassification", out_rules("score")[:1], LABEL_PARAMS
            ),
            "embedding": Head(pooling, f"{name}Model"),
            "token_classification": Head(
                token_classifier, f"{name}ForTokenClassification", out_rules("score"), LABEL_PARAMS
            ),
        },
        trunk_map=_TRUNK_MAP,
        from_hf=dialect.from_hf,
        to_hf=dialect.to_hf,
        inputs=CAUSAL_INPUTS,
        pool="last",
        init_cache=init_cache,
    )


_LLAMA3 = LlamaConfig(
    vocab_size=128256, num_kv_heads=8, mlp_dim=14336, max_positions=8192, rope_theta=500000.0,
    bos_id=128000, eos_id=128001,
)  # fmt: skip
_LLAMA32 = replace(
    _LLAMA3, embed_dim=2048, num_layers=16, mlp_dim=8192, max_positions=131072, tied=True,
    rope_type="llama3", rope_factor=32.0,
)  # fmt: skip
_SMOLLM2 = LlamaConfig(
    vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, mlp_dim=1536, max_positions=8192,
    rope_theta=100000.0, tied=True, init_std=1 / 24, bos_id=0, eos_id=0,
)  # fmt: skip
_QWEN2 = LlamaConfig(
    vocab_size=151936, num_layers=24, embed_dim=896, num_heads=14, num_kv_heads=2, mlp_dim=4864, max_positions=32768,
    norm_eps=1e-6, rope_theta=1000000.0, qkv_bias=True, tied=True, bos_id=151643, eos_id=151643,
)  # fmt: skip
_QWEN3 = LlamaConfig(
    vocab_size=151936, num_layers=28, embed_dim=1024, num_heads=16, num_kv_heads=8, head_dim=128, mlp_dim=3072,
    max_positions=40960, norm_eps=1e-6, rope_theta=1000000.0, qk_norm=True, tied=True, bos_id=151643, eos_id=151645,
)  # fmt: skip

FAMILY = _family(
    _Dialect(
        "llama", _DEFAULTS, fields={**_ATTENTION_BIAS, "mlp_bias": "mlp_bias"}, fixed={"qk_norm": False, "window": None}
    ),
    "Llama",
    presets={
        "smollm2-135m": _SMOLLM2,
        "smollm2-360m": replace(_SMOLLM2, num_layers=32, embed_dim=960, num_heads=15, num_kv_heads=5, mlp_dim=2560),
        "llama-3.2-1b": _LLAMA32,
        "llama-3.2-3b": replace(_LLAMA32, num_layers=28, embed_dim=3072, num_heads=24),
        "llama-3-8b": _LLAMA3,
        "llama-2-7b": LlamaConfig(),
        "llama-2-70b": LlamaConfig(num_layers=80, embed_dim=8192, num_heads=64, num_kv_heads=8, mlp_dim=28672),
    },
    published={
        "smollm2-135m": 134_515_008,
        "smollm2-360m": 361_821_120,
        "llama-3.2-1b": 1_235_814_400,
        "llama-3.2-3b": 3_212_749_824,
        "llama-3-8b": 8_030_261_248,
        "llama-2-7b": 6_738_415_616,
        "llama-2-70b": 68_976_648_192,
    },
)
MISTRAL = _family(
    _Dialect(
        "mistral",
        {**_DEFAULTS, "num_key_value_heads": 8, "intermediate_size": 14336, "max_position_embeddings": 131072,
         "sliding_window": 4096},
        fields={"window": "sliding_window"},
        fixed={"qkv_bias": False, "output_bias": False, "mlp_bias": False, "qk_norm": False},
    ),
    "Mistral",
    presets={"mistral-7b": LlamaConfig(num_kv_heads=8, mlp_dim=14336, max_positions=32768, window=4096)},
    published={"mistral-7b": 7_241_732_096},
)  # fmt: skip
QWEN2 = _family(
    _Dialect(
        "qwen2", _QWEN_DEFAULTS, fields={},
        fixed={"qkv_bias": True, "output_bias": False, "mlp_bias": False, "qk_norm": False},
    ),
    "Qwen2",
    presets={
        "qwen2.5-0.5b": _QWEN2,
        "qwen2.5-1.5b": replace(
            _QWEN2, num_layers=28, embed_dim=1536, num_heads=12, mlp_dim=8960, max_positions=131072
        ),
    },
    published={"qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304},
)  # fmt: skip
QWEN3 = _family(
    _Dialect(
        "qwen3", {**_QWEN_DEFAULTS, "head_dim": 128}, fields=_ATTENTION_BIAS, fixed={"mlp_bias": False, "qk_norm": True}
    ),
    "Qwen3",
    presets={"qwen3-0.6b": _QWEN3, "qwen3-1.7b": replace(_QWEN3, embed_dim=2048, head_dim=None, mlp_dim=6144)},
    published={"qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976},
)
