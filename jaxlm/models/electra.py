"""ELECTRA (Clark et al., 2020, arXiv:2003.10555): BERT's network with narrower embeddings, and its pretraining.

A small generator fills masked tokens in, the model (the discriminator) tells which tokens are not the original ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.base import LABEL_PARAMS, Family, Head, out_rules, pooled_rules
from jaxlm.models.encoder import (
    BERT_FIELDS,
    OLD_NORM_NAMES,
    POSITION_IDS,
    EncoderConfig,
    EncoderTrunk,
    embedding_rules,
    masked_lm_rules,
    stack_rules,
)
from jaxlm.models.hf_config import check_encoder, read_hf, write_hf
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import FactoredLogits, masked_lm, pooled_classifier, pooling, span_ends, token_classifier
from jaxlm.nn.layers import ComputeConfig, Key, activation, dense, split_key
from jaxlm.parallel.sharding import constrain


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
    tied: bool = True
    """Logits of masked language modelling by the token table."""
    generator_size: float = 0.25
    """Width of pretraining's generator as a share of the discriminator's (published: 1/4, base 1/3). HF's config.json
    has no place for it."""


def _trunk(config: ElectraConfig, compute: ComputeConfig) -> EncoderTrunk:
    c = config
    encoder = EncoderConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions, num_types=c.num_types, table_dim=c.table_dim,
        num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=c.dropout, init_std=c.init_std,
    )  # fmt: skip
    return EncoderTrunk(encoder, compute)


_masked_lm = masked_lm(activation="gelu")  # whatever the config's
MAX_LOGITS = 2**25
"""Most generator logits that exist at once: 128 MiB of float32."""


class ReplacedTokensOutputs(NamedTuple):
    generator: FactoredLogits
    """At the slots, states [B, S, D]."""
    discriminator: Float[Array, "B T"]
    """float32 logits of a token having been replaced."""
    replaced: Bool[Array, "B T"]
    """Where the discriminator read another token than the original."""


class ReplacedTokenHead(nn.Module):
    """Dense, activation and one logit for each state: HF's `discriminator_predictions`."""

    config: ElectraConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T"]:
        width = x.shape[-1]
        x = dense(self, "detect", x, (width, width), ("embed", "embed_in"))
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        x = activation(self.config.activation)(x)
        x = dense(self, "detect_out", x, (width, 1), ("embed", "classes"))
        return constrain(x[..., 0].astype(jnp.float32), ("batch", "length"), self.compute.rules)


def generator_config(config: ElectraConfig) -> ElectraConfig:
    """The generator's sizes: width, MLP and heads times `generator_size`, as many heads as divide the width."""
    size = config.generator_size
    if not 0 < size <= 1:
        raise UserError(f"model.config.generator_size: expected a share above 0 and at most 1, found {size}")
    width = max(1, round(config.embed_dim * size))
    most = max(1, round(config.num_heads * size))
    num_heads = next(n for n in range(most, 0, -1) if width % n == 0)
    mlp_dim = max(1, round(config.mlp_dim * size))
    return replace(config, embed_dim=width, num_heads=num_heads, mlp_dim=mlp_dim, tied=True)


class Generator(nn.Module):
    """Fills masked tokens in; it reads the discriminator's embeddings and token table."""

    config: ElectraConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.trunk = _trunk(
            self.config, self.compute
        )  # its own embeddings are never called, so they have no parameters
        self.head = _masked_lm(self.config, self.compute, 0)

    def __call__(
        self, x_BTE: Float[Array, "B T E"], batch: Mapping[str, jax.Array], key: Key, table: Float[Array, "V E"]
    ) -> FactoredLogits:
        states = self.trunk.encode(x_BTE, batch["segment_ids"], batch["slot_positions"], key)
        return self.head(states, batch, None, table)


class ReplacedTokens(nn.Module):
    """Generator and discriminator over one set of embeddings, trained together.

    Parameters: {"trunk", "head"}: the discriminator; {"generator": {"trunk", "head"}}: what is the generator's own.
    """

    config: ElectraConfig
    compute: ComputeConfig

    def setup(self) -> None:
        self.trunk = _trunk(self.config, self.compute)
        self.head = ReplacedTokenHead(self.config, self.compute)
        self.generator = Generator(generator_config(self.config), self.compute)

    def __call__(self, batch: Mapping[str, jax.Array], key: Key = None) -> ReplacedTokensOutputs:
        """Fills the masked tokens in and tells which tokens are not the original ones.

        Args:
          batch: what the trunk reads, `tokens` being the masked ones; original_tokens int32 [B, T]; the masked columns
            slot_positions int32 [B, S], weights float32 [B, S], 0 for an empty slot.
          key: PRNG key of dropout and of the samples; None computes without dropout and always draws the same noise.
        """
        generator_key, sample_key, trunk_key = split_key(key, 3)
        embed_key, stack_key = split_key(generator_key, 2)
        inputs = _inputs(batch)
        x = self.trunk.embed(inputs["tokens"], inputs["positions"], inputs.get("token_types"), embed_key)
        factors = self.generator(x, batch, stack_key, self.trunk.tokens)

        original = batch["original_tokens"]
        drawn = _sample(factors, jax.random.key(0) if sample_key is None else sample_key).astype(original.dtype)
        filled = _put(original, jnp.where(batch["weights"] > 0, batch["slot_positions"], original.shape[1]), drawn)
        states = self.trunk(**{**inputs, "tokens": filled}, key=trunk_key)
        return ReplacedTokensOutputs(factors, self.head(states), filled != original)


def _replaced_tokens(config: ElectraConfig, compute: ComputeConfig, num_outputs: int) -> ReplacedTokens:
    del num_outputs
    return ReplacedTokens(config, compute)


def _inputs(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    names = ("tokens", "segment_ids", "positions", "token_types")
    return {name: batch[name] for name in names if name in batch}


def _sample(factors: FactoredLogits, key: jax.Array) -> Int[Array, "B S"]:
    """Draws from softmax(logits) by the Gumbel-max trick, a few slots at a time; no gradient flows through it."""
    factors = jax.lax.stop_gradient(factors)
    rows, slots = factors.states.shape[:2]

    def one(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jax.random.categorical(part[1], replace(factors, states=part[0]).logits())

    parts = (jnp.moveaxis(factors.states, 1, 0), jax.random.split(key, slots))
    together = max(1, MAX_LOGITS // (rows * factors.table.shape[0]))
    drawn = jax.vmap(one)(parts) if together >= slots else jax.lax.map(one, parts, batch_size=together)
    return jnp.moveaxis(drawn, 0, 1)


@jax.vmap
def _put(row_T: jax.Array, columns_S: jax.Array, values_S: jax.Array) -> jax.Array:
    """Sets a row's columns to values; columns beyond the row are dropped."""
    return row_T.at[columns_S].set(values_S, mode="drop")


_FIELDS = {**BERT_FIELDS, "table_dim": "embedding_size"}
_DEFAULTS = write_hf(ElectraConfig(), _FIELDS)


def _from_hf(config: Mapping[str, Any]) -> ElectraConfig:
    check_encoder(config)
    return ElectraConfig(**read_hf(ElectraConfig, config, _FIELDS, _DEFAULTS))


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
    trunk=_trunk,
    heads={
        "classification": Head(
            pooled_classifier("gelu", dropout_before=True),
            "ElectraForSequenceClassification",
            pooled_rules("classifier.dense", "classifier.out_proj"),
            LABEL_PARAMS,
        ),
        "token_classification": Head(
            token_classifier, "ElectraForTokenClassification", out_rules("classifier"), LABEL_PARAMS
        ),
        "question_answering": Head(span_ends, "ElectraForQuestionAnswering", out_rules("qa_outputs")),
        "multiple_choice": Head(
            pooled_classifier("gelu", dropout_before=False),
            "ElectraForMultipleChoice",
            pooled_rules("sequence_summary.summary", "classifier"),
            LABEL_PARAMS,
        ),
        "embedding": Head(pooling, "ElectraModel"),
        "masked_lm": Head(
            _masked_lm,
            "ElectraForMaskedLM",
            masked_lm_rules(
                "generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head", own_bias=False
            ),
        ),
        "replaced_tokens": Head(
            _replaced_tokens,
            "ElectraForPreTraining",
            (
                Rule("head/detect", "discriminator_predictions.dense.weight", "e d -> d e"),
                Rule("head/detect_bias", "discriminator_predictions.dense.bias"),
                Rule("head/detect_out", "discriminator_predictions.dense_prediction.weight", "c d -> d c"),
                Rule("head/detect_out_bias", "discriminator_predictions.dense_prediction.bias"),
            ),
            is_network=True,
            inputs=("original_tokens", "weights"),
        ),
    },
    trunk_map=WeightMap(
        rules=(
            *embedding_rules("electra.embeddings."),
            Rule("trunk/project", "electra.embeddings_project.weight", "d e -> e d"),
            Rule("trunk/project_bias", "electra.embeddings_project.bias"),
            *stack_rules("electra.encoder.layer.{i}."),
        ),
        prefix="electra.",
        copies=(("generator_lm_head.weight", "electra.embeddings.word_embeddings.weight"),),
        buffers=POSITION_IDS,
        aliases=OLD_NORM_NAMES,
        not_exported=(r"^generator/",),
    ),
    from_hf=_from_hf,
    to_hf=lambda config: write_hf(config, _FIELDS),
)
