"""BART, mBART, Marian and Pegasus: config.json, HF tables, presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from jaxlm.errors import UserError
from jaxlm.models.bart import BartConfig, BartTrunk, Design, init_cache, seq2seq_lm, sinusoids
from jaxlm.models.base import Family, Head
from jaxlm.models.hf_config import check_activation, read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap

# Our config field -> HF's.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers",
    "embed_dim": "d_model",
    "num_heads": "encoder_attention_heads",
    "num_decoder_heads": "decoder_attention_heads",
    "mlp_dim": "encoder_ffn_dim",
    "decoder_mlp_dim": "decoder_ffn_dim",
    "max_positions": "max_position_embeddings",
    "activation": "activation_function",
    "scale_embedding": "scale_embedding",
    "dropout": "dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "classifier_dropout": "classifier_dropout",
    "layer_dropout": "encoder_layerdrop",
    "decoder_layer_dropout": "decoder_layerdrop",
    "init_std": "init_std",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
    "decoder_start_id": "decoder_start_token_id",
    "forced_eos_id": "forced_eos_token_id",
}
_DECODER_SIZES = {"num_decoder_layers": "num_layers", "num_decoder_heads": "num_heads", "decoder_mlp_dim": "mlp_dim"}


def _from_hf(silent: BartConfig, config: Mapping[str, Any]) -> BartConfig:
    """Args: silent: what Transformers assumes where a config.json is silent."""
    for key in ("share_encoder_decoder_embeddings", "tie_word_embeddings"):
        if config.get(key, True) is not True:
            raise UserError(f"config.json: {key}=false is not supported; expected one token table for all uses")
    values = read_hf(BartConfig, config, _FIELDS, _to_hf(silent))
    if (own := config.get("decoder_vocab_size") or values["vocab_size"]) != values["vocab_size"]:
        raise UserError(
            f"config.json: decoder_vocab_size={own} is not supported; expected vocab_size's {values['vocab_size']}"
        )
    check_activation(values["activation"], "activation_function")
    for ours in ("bos_id", "eos_id", "forced_eos_id"):
        if _FIELDS[ours] in config and config[_FIELDS[ours]] is None:
            values[ours] = None  # said to be none, not left out
    for ours, of_encoder in _DECODER_SIZES.items():
        if values[ours] == values[of_encoder]:
            values[ours] = None
    return BartConfig(**values)


def _to_hf(config: BartConfig) -> dict[str, Any]:
    layers, heads, mlp_dim = config.sizes(True)
    return {
        **write_hf(config, _FIELDS),
        "decoder_layers": layers,
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": mlp_dim,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    }


_MODULES = {
    "q": ("self_attn.q_proj", "(n h) d -> d n h", "(n h) -> n h"),
    "k": ("self_attn.k_proj", "(n h) d -> d n h", "(n h) -> n h"),
    "v": ("self_attn.v_proj", "(n h) d -> d n h", "(n h) -> n h"),
    "o": ("self_attn.out_proj", "d (n h) -> n h d", ""),
    "up": ("fc1", "f d -> d f", ""),
    "down": ("fc2", "d f -> f d", ""),
}
_NORMS = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}


def _stack_rules(ours: str, design: Design) -> tuple[Rule, ...]:
    """Returns the HF rules of the "encoder" or the "decoder"."""
    modules, norms = dict(_MODULES), dict(_NORMS)
    if ours == "decoder":
        for name in "qkvo":
            module, weight, bias = _MODULES[name]
            modules[f"cross_{name}"] = (module.replace("self_attn", "encoder_attn"), weight, bias)
        norms["cross_norm"] = "encoder_attn_layer_norm"
    stack, theirs = f"trunk/{ours}", f"model.{ours}"
    rules = []
    for name, (module, weight, bias) in modules.items():
        rules.append(Rule(f"{stack}/layers/{name}", f"{theirs}.layers.{{i}}.{module}.weight", weight))
        rules.append(Rule(f"{stack}/layers/{name}_bias", f"{theirs}.layers.{{i}}.{module}.bias", bias))
    norms = {f"layers/{name}": f"layers.{{i}}.{module}" for name, module in norms.items()}
    if design.learned:
        rules.append(Rule(f"{stack}/positions", f"{theirs}.embed_positions.weight"))
        norms["embed_norm"] = "layernorm_embedding"
    if design.pre_norm:
        norms["final_norm"] = "layer_norm"
    for name, module in norms.items():
        rules.append(Rule(f"{stack}/{name}_scale", f"{theirs}.{module}.weight"))
        rules.append(Rule(f"{stack}/{name}_bias", f"{theirs}.{module}.bias"))
    return tuple(rules)


def _is_sinusoidal(values: np.ndarray, config: Any) -> bool:
    if values.ndim != 2 or values.shape[1] != config.embed_dim:
        return False
    return bool(np.allclose(values, sinusoids(*values.shape), atol=1e-5))


def _positions(config: BartConfig) -> np.ndarray:
    return sinusoids(config.max_positions, config.embed_dim)


def _weight_map(design: Design) -> WeightMap:
    table = "model.shared.weight"
    return WeightMap(
        rules=(Rule("trunk/tokens", table), *_stack_rules("encoder", design), *_stack_rules("decoder", design)),
        prefix="model.",
        ignore=(r"^model\.(encoder|decoder)\.version$", r"^classification_head\.", r"^qa_outputs\."),
        copies=tuple((f"{name}.weight", table) for name in (*_TABLES, "lm_head")),
        buffers=() if design.learned else ((r"^model\.(encoder|decoder)\.embed_positions\.weight$", _is_sinusoidal),),
    )


_TABLES = ("model.encoder.embed_tokens", "model.decoder.embed_tokens")


def _family(
    name: str,
    architecture: str,
    design: Design,
    silent: BartConfig,
    sizes: Mapping[str, tuple[BartConfig, int]],
) -> Family:
    """Args: sizes: preset -> its config and number of parameters, the bias of the logits among them."""
    rules = (Rule("head/logits_bias", "final_logits_bias", "1 v -> v"),)
    return Family(
        name=name,
        config=BartConfig,
        presets={preset: config for preset, (config, _) in sizes.items()},
        published={preset: count for preset, (_, count) in sizes.items()},
        trunk=partial(BartTrunk, design=design),
        heads={"seq2seq_lm": Head(seq2seq_lm, architecture, rules)},
        trunk_map=_weight_map(design),
        from_hf=partial(_from_hf, silent),
        to_hf=_to_hf,
        inputs=(
            "tokens", "segment_ids", "positions", "decoder_tokens", "decoder_segment_ids", "decoder_positions",
        ),
        init_cache=init_cache,
    )  # fmt: skip


_LARGE = BartConfig()
_MARIAN_SILENT = BartConfig(
    vocab_size=58101, bos_id=None, eos_id=0, pad_id=58100, decoder_start_id=58100, forced_eos_id=0
)
_MARIAN = replace(
    _MARIAN_SILENT, num_layers=6, embed_dim=512, num_heads=8, mlp_dim=2048, max_positions=512, activation="swish",
    scale_embedding=True,
)  # fmt: skip
_PEGASUS_SILENT = BartConfig(eos_id=1, pad_id=0, decoder_start_id=0, forced_eos_id=1)
_PEGASUS = replace(
    _PEGASUS_SILENT, vocab_size=96103, num_layers=16, activation="relu", scale_embedding=True, attention_dropout=0.1,
    activation_dropout=0.1,
)  # fmt: skip

FAMILY = _family(
    "bart",
    "BartForConditionalGeneration",
    Design(learned=True, pre_norm=False),
    _LARGE,
    {
        "base": (replace(_LARGE, num_layers=6, embed_dim=768, num_heads=12, mlp_dim=3072), 139_470_681),
        "large": (_LARGE, 406_341_721),
    },
)
MBART_FAMILY = _family(
    "mbart",
    "MBartForConditionalGeneration",
    Design(learned=True, pre_norm=True),
    _LARGE,
    {
        "large-cc25": (replace(_LARGE, vocab_size=250027, scale_embedding=True), 611_101_867),
        "large-50": (replace(_LARGE, vocab_size=250054, scale_embedding=True, activation="relu"), 611_129_542),
    },
)
MARIAN_FAMILY = _family(
    "marian",
    "MarianMTModel",
    Design(learned=False, pre_norm=False),
    _MARIAN_SILENT,
    {
        "base": (_MARIAN, 73_944_309),
        "big": (
            replace(_MARIAN, embed_dim=1024, num_heads=16, mlp_dim=4096, max_positions=1024, activation="relu"),
            235_910_901,
        ),
    },
)
_PEGASUS_FAMILY = _family(
    "pegasus",
    "PegasusForConditionalGeneration",
    Design(learned=False, pre_norm=True),
    _PEGASUS_SILENT,
    {"large": (_PEGASUS, 568_796_007)},
)
# Transformers knows Marian's positions by their formula, and reads Pegasus' from the file.
_SAVED = tuple((f"model.{stack}.embed_positions.weight", _positions) for stack in ("encoder", "decoder"))
PEGASUS_FAMILY = replace(_PEGASUS_FAMILY, trunk_map=replace(_PEGASUS_FAMILY.trunk_map, constants=_SAVED))
