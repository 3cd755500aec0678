"""Recurrent encoder-decoders: config.json, names of the tensors, presets.

Transformers has no such family; config.json names classes (`LstmForConditionalGeneration`) that only jaxlm reads.
`encoder.*` and `decoder.*` load into `torch.nn.LSTM` and `torch.nn.GRU` as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from jaxlm.models.base import Family, Head
from jaxlm.models.hf_config import read_hf, write_hf
from jaxlm.models.recurrent import FIELDS, GRU, LSTM, Cell, layer_rules
from jaxlm.models.recurrent_seq2seq import RecurrentSeq2SeqConfig, RecurrentSeq2SeqTrunk, init_cache
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import causal_lm

_FIELDS = {
    **FIELDS,
    "attention": "attention",
    "input_feeding": "input_feeding",
    "bidirectional": "bidirectional",
    "decoder_start_id": "decoder_start_token_id",
}
_DEFAULTS = write_hf(RecurrentSeq2SeqConfig(), _FIELDS)


def _from_hf(config: Mapping[str, Any]) -> RecurrentSeq2SeqConfig:
    return RecurrentSeq2SeqConfig(**read_hf(RecurrentSeq2SeqConfig, config, _FIELDS, _DEFAULTS))


def _to_hf(config: RecurrentSeq2SeqConfig) -> dict[str, Any]:
    return {**write_hf(config, _FIELDS), "is_encoder_decoder": True}


_TRUNK_MAP = WeightMap(
    rules=(
        Rule("trunk/tokens", "embedding.weight"),
        *layer_rules("encoder_first/forward", 0, "encoder"),
        *layer_rules("encoder_first/backward", 0, "encoder", "_reverse"),
        *layer_rules("encoder_layers/forward", 1, "encoder"),
        *layer_rules("encoder_layers/backward", 1, "encoder", "_reverse"),
        *layer_rules("decoder_first", 0, "decoder"),
        *layer_rules("decoder_layers", 1, "decoder"),
        Rule("trunk/bridge", "bridge.weight", "(l h) d -> d l h"),
        Rule("trunk/query", "attention.query.weight", "h d -> d h"),
        Rule("trunk/key", "attention.key.weight", "h d -> d h"),
        Rule("trunk/energy", "attention.energy.weight", "1 h -> h"),
        Rule("trunk/combine", "attention.combine.weight", "h (two d) -> two d h"),
        Rule("trunk/project", "projection.weight", "e h -> h e"),
    ),
    prefix="",
    copies=(("lm_head.weight", "embedding.weight"),),
)
_SMALL = RecurrentSeq2SeqConfig()


def _family(name: str, title: str, cell: Cell, sizes: Mapping[str, int]) -> Family:
    return Family(
        name=name,
        config=RecurrentSeq2SeqConfig,
        presets={"small": _SMALL, "base": replace(_SMALL, embed_dim=1024, hidden_dim=1024)},
        published=sizes,
        trunk=partial(RecurrentSeq2SeqTrunk, cell),
        heads={
            "seq2seq_lm": Head(
                causal_lm, f"{title}ForConditionalGeneration", (Rule("head/unembed", "lm_head.weight"),)
            )
        },
        trunk_map=_TRUNK_MAP,
        from_hf=_from_hf,
        to_hf=_to_hf,
        inputs=(
            "tokens", "segment_ids", "positions", "decoder_tokens", "decoder_segment_ids", "decoder_positions",
        ),
        init_cache=partial(init_cache, cell),
    )  # fmt: skip


# Nobody published these sizes; what their shapes come to.
LSTM_FAMILY = _family("lstm_seq2seq", "Lstm", LSTM, {"small": 25_051_136, "base": 67_403_776})
GRU_FAMILY = _family("gru_seq2seq", "Gru", GRU, {"small": 23_212_032, "base": 60_055_552})
