"""GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners"): config, modules, presets, HF
table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.base import CAUSAL_INPUTS, LABEL_PARAMS, Family, Head, out_rules
from jaxlm.models.hf_config import check_activation, read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.attention import KVCache, Mask, attend, decoder_mask, empty_cache
from jaxlm.nn.dropout import dropout
from jaxlm.nn.heads import causal_lm, linear_classifier, pooling, token_classifier
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    activation,
    dense,
    embed,
    embedding_lookup,
    embedding_table,
    normal,
    shard_heads,
    split_key,
    take_columns,
)
from jaxlm.nn.norms import layer_norm
from jaxlm.nn.stacks import declare_stack, init_stack, run_stack
from jaxlm.parallel.sharding import constrain


@dataclass(frozen=True)
class GPT2Config:
    vocab_size: int = 50257
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 1024
    activation: str = "gelu_new"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    """Of what attention and MLP add to the states, and of the embeddings."""
    embed_dropout: float | None = None
    """Of the embeddings, where it differs."""
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.0
    tied: bool = True
    """Logits by the token table."""
    init_std: float = 0.02
    bos_id: int | None = 50256
    eos_id: int | tuple[int, ...] | None = 50256
    pad_id: int | None = None

    def __post_init__(self) -> None:
        if self.embed_dim % self.num_heads:
            raise UserError(f"model config: {self.num_heads} attention heads do not divide the width {self.embed_dim}")


class Block(nn.Module):
    """x + attention of its norm, x + MLP of its norm."""

    config: GPT2Config
    compute: ComputeConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        mask: Mask,
        key: Key = None,
        slots_BQ: Int[Array, "B Q"] | None = None,
        cache: KVCache | None = None,
        layer: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B Q D"], KVCache | None]:
        """Returns the new states, at `slots` alone where given, and the cache with this layer's keys and values."""
        c, rules = self.config, self.compute.rules
        D, N, H = c.embed_dim, c.num_heads, c.embed_dim // c.num_heads
        init_residual = normal(c.init_std / math.sqrt(2 * c.num_layers))  # as many maps add to the states
        attention_key, output_key, mlp_key = split_key(key, 3)

        y = layer_norm(self, "attention_norm", x_BTD, c.norm_eps)
        qkv = dense(self, "qkv", y, (D, 3, N, H), ("embed", "qkv", "heads", "head_dim"))
        q, k, v = (qkv[:, :, i] for i in range(3))
        if cache is not None and layer is not None:
            cache, k, v = cache.put(layer, k, v)
        q, k, v = shard_heads(q, k, v, rules)
        q, mask = take_columns(q, slots_BQ), mask.at(slots_BQ)
        y = attend(q, k, v, mask, self.compute, dropout_rate=c.attention_dropout, key=attention_key)
        y = dense(self, "o", y, (N, H, D), ("heads", "head_dim", "embed"), contract=2, init=init_residual)
        x = take_columns(x_BTD, slots_BQ) + dropout(y, c.dropout, output_key)
        x = constrain(x, ("batch", "length", "act_embed"), rules)

        y = layer_norm(self, "mlp_norm", x, c.norm_eps)
        y = dense(self, "up", y, (D, c.mlp_dim), ("embed", "mlp"))
        y = activation(c.activation)(constrain(y, ("batch", "length", "act_mlp"), rules))
        y = dense(self, "down", y, (c.mlp_dim, D), ("mlp", "embed"), init=init_residual)
        x = x + dropout(y, c.dropout, mlp_key)
        return constrain(x, ("batch", "length", "act_embed"), rules), cache


class GPT2Trunk(nn.Module):
    config: GPT2Config
    compute: ComputeConfig

    def setup(self) -> None:
        self.tokens = embedding_table(self, "tokens", self.config.vocab_size, self.config.embed_dim, "vocab")

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        segment_ids: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        prefix: Int[Array, "B T"] | None = None,
        slot_positions: Int[Array, "B S"] | None = None,
        key: Key = None,
        cache: KVCache | None = None,
    ) -> Any:
        """Returns the normalized states, and the cache where one is given."""
        c = self.config
        embed_key, stack_key = split_key(key, 2)
        x = embedding_lookup(self.tokens, tokens, self.compute.rules)
        x = x + embed(self, "positions", positions, c.max_positions, c.embed_dim, "positions")
        rate = c.dropout if c.embed_dropout is None else c.embed_dropout
        x = dropout(x.astype(self.compute.dtype), rate, embed_key)
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)

        if cache is not None:
            cache = cache.extend(segment_ids, prefix)
        mask = decoder_mask(segment_ids, cache, prefix_BT=prefix)
        block = Block(c, self.compute)
        params = declare_stack(self, "layers", init_stack(block, c.num_layers, x, decoder_mask(segment_ids, None)))

        def apply(layer: Any, carry: Any, k: Key, slots: Any = None) -> Any:
            x, cache = carry
            return block.apply({"params": layer["params"]}, x, mask, k, slots, cache, layer["index"])

        layers = {"params": params, "index": jnp.arange(c.num_layers, dtype=jnp.int32)}
        last = None if slot_positions is None else partial(apply, slots=slot_positions)
        x, cache = run_stack(apply, layers, (x, cache), stack_key, self.compute, last)
        x = layer_norm(self, "final_norm", x, c.norm_eps)
        return x if cache is None else (x, cache)


def _init_cache(config: GPT2Config, rows: int, length: int, dtype: Any) -> KVCache:
    head_dim = config.embed_dim // config.num_heads
    return empty_cache(config.num_layers, rows, length, config.num_heads, head_dim, dtype)


# Our config field -> HF's.
_FIELDS = {
    "vocab_size": "vocab_size",
    "num_layers": "n_layer",
    "embed_dim": "n_embd",
    "num_heads": "n_head",
    "mlp_dim": "n_inner",
    "max_positions": "n_positions",
    "activation": "activation_function",
    "norm_eps": "layer_norm_epsilon",
    "dropout": "resid_pdrop",
    "embed_dropout": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
    "classifier_dropout": "classifier_dropout",
    "tied": "tie_word_embeddings",
    "init_std": "initializer_range",
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
}
# What Transformers assumes where a config.json is silent. n_inner: four times the width.
_DEFAULTS = {**write_hf(GPT2Config(), _FIELDS), "n_inner": None, "embd_pdrop": 0.1}
# What would load without an error and compute something else.
_EXPECTED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}


def _from_hf(config: Mapping[str, Any]) -> GPT2Config:
    for key, expected in _EXPECTED.items():
        if config.get(key, expected) != expected:
            found, wanted = json.dumps(config[key]), json.dumps(expected)
            raise UserError(f"config.json: {key}={found} is not supported; expected {wanted}")
    values = read_hf(
        GPT2Config, {**_DEFAULTS, **config}, _FIELDS, {**_DEFAULTS, "bos_token_id": None, "eos_token_id": None}
    )
    check_activation(values["activation"], "activation_function")
    if values["mlp_dim"] is None:
        values["mlp_dim"] = 4 * values["embed_dim"]
    if values["embed_dropout"] == values["dropout"]:
        values["embed_dropout"] = None
    return GPT2Config(**values)


def _to_hf(config: GPT2Config) -> dict[str, Any]:
    values = write_hf(config, _FIELDS)
    if config.mlp_dim == 4 * config.embed_dim:
        values["n_inner"] = None
    if config.embed_dropout is None:
        values["embd_pdrop"] = config.dropout
    return values


def _is_causal_mask(values: np.ndarray, config: Any) -> bool:
    del config
    return values.shape[-2:] == (n := values.shape[-1], n) and bool((values == np.tri(n, dtype=np.float32)).all())


def _is_low(values: np.ndarray, config: Any) -> bool:
    """What hidden logits are set to: their softmax is 0."""
    del config
    return bool((values <= -1e3).all())


_SMALL = GPT2Config()

FAMILY = Family(
    name="gpt2",
    config=GPT2Config,
    presets={
        "small": _SMALL,
        "medium": replace(_SMALL, num_layers=24, embed_dim=1024, num_heads=16, mlp_dim=4096),
        "large": replace(_SMALL, num_layers=36, embed_dim=1280, num_heads=20, mlp_dim=5120),
        "xl": replace(_SMALL, num_layers=48, embed_dim=1600, num_heads=25, mlp_dim=6400),
    },
    published={"small": 124_439_808, "medium": 354_823_168, "large": 774_030_080, "xl": 1_557_611_200},
    trunk=GPT2Trunk,
    heads={
        "causal_lm": Head(causal_lm, "GPT2LMHeadModel", (Rule("head/unembed", "lm_head.weight"),)),
        "classification": Head(
            linear_classifier, "GPT2ForSequenceClassification", out_rules("score")[:1], LABEL_PARAMS
        ),
        "embedding": Head(pooling, "GPT2Model"),
        "token_classification": Head(
            token_classifier, "GPT2ForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
    },
    trunk_map=WeightMap(
        rules=(
            Rule("trunk/tokens", "transformer.wte.weight"),
            Rule("trunk/positions", "transformer.wpe.weight"),
            Rule("trunk/layers/attention_norm_scale", "transformer.h.{i}.ln_1.weight"),
            Rule("trunk/layers/attention_norm_bias", "transformer.h.{i}.ln_1.bias"),
            # HF keeps these maps as [inputs, outputs], and query, key and value in one.
            Rule("trunk/layers/qkv", "transformer.h.{i}.attn.c_attn.weight", "d (three n h) -> d three n h"),
            Rule("trunk/layers/qkv_bias", "transformer.h.{i}.attn.c_attn.bias", "(three n h) -> three n h"),
            Rule("trunk/layers/o", "transformer.h.{i}.attn.c_proj.weight", "(n h) d -> n h d"),
            Rule("trunk/layers/o_bias", "transformer.h.{i}.attn.c_proj.bias"),
            Rule("trunk/layers/mlp_norm_scale", "transformer.h.{i}.ln_2.weight"),
            Rule("trunk/layers/mlp_norm_bias", "transformer.h.{i}.ln_2.bias"),
            Rule("trunk/layers/up", "transformer.h.{i}.mlp.c_fc.weight"),
            Rule("trunk/layers/up_bias", "transformer.h.{i}.mlp.c_fc.bias"),
            Rule("trunk/layers/down", "transformer.h.{i}.mlp.c_proj.weight"),
            Rule("trunk/layers/down_bias", "transformer.h.{i}.mlp.c_proj.bias"),
            Rule("trunk/final_norm_scale", "transformer.ln_f.weight"),
            Rule("trunk/final_norm_bias", "transformer.ln_f.bias"),
        ),
        prefix="transformer.",
        ignore=(r"^multiple_choice_head\.", r"^qa_outputs\."),
        copies=(("lm_head.weight", "transformer.wte.weight"),),
        buffers=((r"\.attn\.bias$", _is_causal_mask), (r"\.attn\.masked_bias$", _is_low)),
    ),
    from_hf=_from_hf,
    to_hf=_to_hf,
    inputs=CAUSAL_INPUTS,
    pool="last",
    init_cache=_init_cache,
)
