"""T5 and mT5 in Hugging Face's terms: config.json both ways, heads, key names, presets. The network: `models.t5`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flax import linen as nn

from jaxlm.errors import UserError
from jaxlm.models.base import Family, Head
from jaxlm.models.hf_config import read_hf, write_hf
from jaxlm.models.t5 import ScaledHead, T5Config, T5Trunk, init_cache
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import LanguageModelHead
from jaxlm.nn.layers import ACTIVATIONS, ComputeConfig


def _seq2seq_lm(config: T5Config, compute: ComputeConfig, num_outputs: int) -> nn.Module:
    del num_outputs
    if config.tied:
        return ScaledHead(compute)
    return LanguageModelHead(config.vocab_size, False, config.embed_dim**-0.5, compute)


def _heads(name: str) -> dict[str, Head]:
    """Heads of the HF classes called `name`For..."""
    # Transformers 5 leaves a head out that it has tied, whatever the version.
    unembed = Rule("head/unembed", "lm_head.weight", fallback_key="shared.weight")
    return {"seq2seq_lm": Head(_seq2seq_lm, f"{name}ForConditionalGeneration", (unembed,))}


# Our config field -> HF's.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "embed_dim": "d_model",
    "num_heads": "num_heads",
    "head_dim": "d_kv",
    "mlp_dim": "d_ff",
    "num_buckets": "relative_attention_num_buckets",
    "max_distance": "relative_attention_max_distance",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "dropout_rate",
    "classifier_dropout": "classifier_dropout",
    "init_factor": "initializer_factor",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
    "decoder_start_id": "decoder_start_token_id",
}
_DEFAULTS = write_hf(T5Config(), _FIELDS)


def _from_hf(config: Mapping[str, Any]) -> T5Config:
    values = read_hf(T5Config, config, _FIELDS, _DEFAULTS)
    if config.get("decoder_start_token_id") is None:
        values["decoder_start_id"] = values["pad_id"]
    if values["num_decoder_layers"] == values["num_layers"]:
        values["num_decoder_layers"] = None
    kind = config.get("feed_forward_proj", "relu")
    if not isinstance(kind, str):
        raise UserError(f"config.json: feed_forward_proj: expected a word, found {kind!r}")
    *gated, act = kind.split("-")
    act = "gelu_new" if kind == "gated-gelu" else act
    if gated not in ([], ["gated"]) or act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(
            f"config.json: feed_forward_proj={kind!r} is not supported; expected one of {known}, or gated- and one"
        )
    # Transformers 5 writes tie_word_embeddings=true for both versions, and tells them apart by a key of its own.
    tied = config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False)
    return T5Config(**values, activation=act, gated=bool(gated), tied=tied)


def _to_hf(config: T5Config) -> dict[str, Any]:
    act = "gelu" if config.gated and config.activation == "gelu_new" else config.activation
    return {
        **write_hf(config, _FIELDS),
        "num_decoder_layers": config.num_decoder_layers or config.num_layers,
        "feed_forward_proj": f"gated-{act}" if config.gated else act,
        "is_encoder_decoder": True,
        "tie_word_embeddings": config.tied,
    }


def _mt5_from_hf(config: Mapping[str, Any]) -> T5Config:
    """mT5 never scales the states, whatever config.json says of tied embeddings."""
    silent = {"vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu"}
    given = {key: value for key, value in config.items() if value is not None}
    return replace(_from_hf({**silent, **given}), tied=False)


def _stack_rules(ours: str, mlp: int) -> tuple[Rule, ...]:
    """Returns the HF rules of a stack; `mlp` is the number of HF's sub-layer that holds the MLP."""
    layer = f"{ours}.block.{{i}}.layer."
    parts = [("", f"{layer}0.", "SelfAttention")]
    if mlp == 2:
        parts.append(("cross_", f"{layer}1.", "EncDecAttention"))
    rules = []
    for name, prefix, module in parts:
        rules.append(Rule(f"trunk/{ours}/layers/{name}norm_scale", f"{prefix}layer_norm.weight"))
        for part in "qkv":
            rules.append(
                Rule(f"trunk/{ours}/layers/{name}{part}", f"{prefix}{module}.{part}.weight", "(n h) d -> d n h")
            )
        rules.append(Rule(f"trunk/{ours}/layers/{name}o", f"{prefix}{module}.o.weight", "d (n h) -> n h d"))
    return (
        *rules,
        Rule(f"trunk/{ours}/layers/mlp_norm_scale", f"{layer}{mlp}.layer_norm.weight"),
        Rule(f"trunk/{ours}/layers/up", f"{layer}{mlp}.DenseReluDense.wi.weight", "f d -> d f"),
        Rule(f"trunk/{ours}/layers/gate", f"{layer}{mlp}.DenseReluDense.wi_0.weight", "f d -> d f"),
        Rule(f"trunk/{ours}/layers/linear", f"{layer}{mlp}.DenseReluDense.wi_1.weight", "f d -> d f"),
        Rule(f"trunk/{ours}/layers/down", f"{layer}{mlp}.DenseReluDense.wo.weight", "d f -> f d"),
        Rule(f"trunk/{ours}/relative_bias", f"{ours}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        Rule(f"trunk/{ours}/final_norm_scale", f"{ours}.final_layer_norm.weight"),
    )


_SMALL = T5Config()
_BASE = replace(_SMALL, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=3072)
_LARGE = replace(_SMALL, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096)
_NEW = replace(_SMALL, num_layers=8, num_heads=6, mlp_dim=1024, activation="gelu_new", gated=True, tied=False)
_VERSION_1_1 = {
    "small": _NEW,
    "base": replace(_NEW, num_layers=12, embed_dim=768, num_heads=12, mlp_dim=2048),
    "large": replace(_NEW, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=2816),
    "xl": replace(_NEW, num_layers=24, embed_dim=2048, num_heads=32, mlp_dim=5120),
}

FAMILY = Family(
    name="t5",
    config=T5Config,
    presets={
        "small": _SMALL,
        "base": _BASE,
        "large": _LARGE,
        "3b": replace(_LARGE, num_heads=32, head_dim=128, mlp_dim=16384),
        **{f"v1_1-{size}": config for size, config in _VERSION_1_1.items()},
    },
    published={
        "small": 60_506_624,
        "base": 222_903_552,
        "large": 737_668_096,
        "3b": 2_851_598_336,
        "v1_1-small": 76_961_152,
        "v1_1-base": 247_577_856,
        "v1_1-large": 783_150_080,
        "v1_1-xl": 2_849_757_184,
    },
    trunk=T5Trunk,
    heads=_heads("T5"),
    trunk_map=WeightMap(
        rules=(
            Rule("trunk/tokens", "shared.weight"),
            *_stack_rules("encoder", 1),
            *_stack_rules("decoder", 2),
        ),
        prefix="",
        # Never read by any version.
        ignore=(r"^decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$",),
        copies=(
            ("encoder.embed_tokens.weight", "shared.weight"),
            ("decoder.embed_tokens.weight", "shared.weight"),
            ("lm_head.weight", "shared.weight"),
        ),
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
    inputs=("tokens", "segment_ids", "decoder_tokens", "decoder_segment_ids"),
    init_cache=init_cache,
)

MT5 = replace(
    FAMILY,
    name="mt5",
    presets={size: replace(config, vocab_size=250112) for size, config in _VERSION_1_1.items()},
    published={"small": 300_176_768, "base": 582_401_280, "large": 1_229_581_312, "xl": 3_742_619_648},
    heads=_heads("MT5"),
    from_hf=_mt5_from_hf,
)
