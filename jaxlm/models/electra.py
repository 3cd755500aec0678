"""ELECTRA's discriminator (Clark et al., 2020, arXiv:2003.10555): BERT's network, narrower embeddings, a GELU head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from flax import linen as nn
from jaxtyping import Array, Float, Int

from jaxlm.heads import masked_lm, pooled_classifier
from jaxlm.hf.table import Row, Table
from jaxlm.layers import Compute, Key, dense, normal, split
from jaxlm.models.base import Family, check_encoder, read_hf, write_hf
from jaxlm.models.post_norm import (
    BERT_FIELDS,
    OLD_NORM_NAMES,
    Stack,
    StackConfig,
    embedding_rows,
    embeddings,
    masked_lm_rows,
    stack_rows,
)
from jaxlm.sharding import constrain


@dataclass(frozen=True)
class ElectraConfig:
    vocab_size: int = 30522
    num_layers: int = 12
    table_dim: int = 128
    """Width of the embedding tables; projected to `embed_dim` where it differs."""
    embed_dim: int = 256
    num_heads: int = 4
    mlp_dim: int = 1024
    max_positions: int = 512
    num_types: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    init_std: float = 0.02
    pad_id: int = 0


class ElectraTrunk(nn.Module):
    config: ElectraConfig
    compute: Compute

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "R T"],
        segment_ids: Int[Array, "R T"],
        positions: Int[Array, "R T"],
        token_types: Int[Array, "R T"] | None = None,
        slot_positions: Int[Array, "R S"] | None = None,
        key: Key = None,
    ) -> Float[Array, "R Q D"]:
        c = self.config
        embed_key, stack_key = split(key, 2)
        x = embeddings(
            self, tokens, positions, token_types, embed_key,
            sizes=(c.vocab_size, c.max_positions, c.num_types, c.table_dim),
            norm_eps=c.norm_eps, dropout_rate=c.dropout, init_std=c.init_std, compute=self.compute,
        )  # fmt: skip
        if c.table_dim != c.embed_dim:
            x = dense(
                self, "project", x, (c.table_dim, c.embed_dim), ("embed_in", "embed"),
                init=normal(c.init_std), dtype=self.compute.dtype,
            )  # fmt: skip
            x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        stack = StackConfig(
            num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
            activation=c.activation, norm_eps=c.norm_eps, attention_dropout=c.attention_dropout,
            attention_output_dropout=c.dropout, mlp_dropout=c.dropout, init_std=c.init_std,
        )  # fmt: skip
        return Stack(stack, self.compute, name="stack")(x, segment_ids, slot_positions, stack_key)


_FIELDS = {**BERT_FIELDS, "table_dim": "embedding_size"}
_DEFAULTS = write_hf(ElectraConfig(), _FIELDS)


def _from_hf(config: Mapping[str, Any]) -> ElectraConfig:
    check_encoder(config)
    return ElectraConfig(**read_hf(config, _FIELDS, _DEFAULTS))


_SMALL = ElectraConfig()

FAMILY = Family(
    name="electra",
    config=ElectraConfig,
    presets={
        "small": _SMALL,
        "base": replace(_SMALL, table_dim=768, embed_dim=768, num_heads=12, mlp_dim=3072),
        "large": replace(_SMALL, num_layers=24, table_dim=1024, embed_dim=1024, num_heads=16, mlp_dim=4096),
    },
    published={"small": 13_549_314, "base": 109_483_778, "large": 335_143_938},
    trunk=ElectraTrunk,
    heads={
        "classification": pooled_classifier("gelu", dropout_before=True),
        "masked_lm": masked_lm(activation="gelu"),  # whatever the config's
    },
    architectures={"classification": "ElectraForSequenceClassification", "masked_lm": "ElectraForMaskedLM"},
    table=Table(
        rows=(
            *embedding_rows("electra.embeddings."),
            Row("trunk/project", "electra.embeddings_project.weight", "d e -> e d"),
            Row("trunk/project_bias", "electra.embeddings_project.bias"),
            *stack_rows("electra.encoder.layer.{i}."),
            Row("head/dense", "classifier.dense.weight", "e d -> d e"),
            Row("head/dense_bias", "classifier.dense.bias"),
            Row("head/out", "classifier.out_proj.weight", "c d -> d c"),
            Row("head/out_bias", "classifier.out_proj.bias"),
            *masked_lm_rows("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
        ),
        prefix="electra.",
        ignore=(
            r"^discriminator_predictions\.", r"^generator_(predictions|lm_head)\.", r"embeddings\.position_ids$",
            r"^classifier\.", r"^qa_outputs\.",
        ),  # fmt: skip
        aliases=OLD_NORM_NAMES,
    ),
    from_hf=_from_hf,
    to_hf=lambda config: write_hf(config, _FIELDS),
)
