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
from jaxlm.models.base import Family, check_encoder, read_hf, write_hf
from jaxlm.models.encoder import (
    BERT_FIELDS,
    OLD_NORM_NAMES,
    Stack,
    StackConfig,
    embedding_rows,
    embeddings,
    masked_lm_rows,
    stack_rows,
)
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.heads import FactoredLogits, masked_lm, pooled_classifier
from jaxlm.nn.layers import ComputeConfig, Key, activation, dense, normal, split_key
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
    generator_size: float = 0.25
    """Width of pretraining's generator as a share of the discriminator's (published: 1/4, base 1/3). HF's config.json
    has no place for it."""


class ElectraTrunk(nn.Module):
    config: ElectraConfig
    compute: ComputeConfig

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
        embed_key, stack_key = split_key(key, 2)
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


_masked_lm = masked_lm(activation="gelu")  # whatever the config's
_SHARED = ("tokens", "positions", "types", "embed_norm_scale", "embed_norm_bias")
"""Parameters of the trunk that the generator reads too."""
MAX_LOGITS = 2**25
"""Most generator logits that exist at once: 128 MiB of float32."""


class ReplacedTokensOutputs(NamedTuple):
    generator: FactoredLogits
    """At the slots, states [R, S, D]."""
    discriminator: Float[Array, "R T"]
    """float32 logits of a token having been replaced."""
    replaced: Bool[Array, "R T"]
    """Where the discriminator read another token than the original."""


class ReplacedTokenHead(nn.Module):
    """Dense, activation and one logit for each state: HF's `discriminator_predictions`."""

    config: ElectraConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x: Float[Array, "R T D"]) -> Float[Array, "R T"]:
        width, init, dtype = x.shape[-1], normal(self.config.init_std), self.compute.dtype
        x = dense(self, "detect", x, (width, width), ("embed", "embed_in"), init=init, dtype=dtype)
        x = constrain(x, ("batch", "length", "act_embed"), self.compute.rules)
        x = activation(self.config.activation)(x)
        x = dense(self, "detect_out", x, (width, 1), ("embed", "classes"), init=init, dtype=dtype)
        return constrain(x[..., 0].astype(jnp.float32), ("batch", "length"), self.compute.rules)


def generator_config(config: ElectraConfig) -> ElectraConfig:
    """The generator's sizes: width, MLP and heads times `generator_size`, as many heads as divide the width."""
    size = config.generator_size
    if not 0 < size <= 1:
        raise UserError(f"model.config.generator_size: expected a share above 0 and at most 1, found {size}")
    width = max(1, round(config.embed_dim * size))
    most = max(1, round(config.num_heads * size))
    num_heads = next(n for n in range(most, 0, -1) if width % n == 0)
    return replace(config, embed_dim=width, num_heads=num_heads, mlp_dim=max(1, round(config.mlp_dim * size)))


@dataclass(frozen=True)
class ReplacedTokens:
    """Generator and discriminator over one set of embeddings, trained together: a `Family.networks` entry.

    Parameters: {"trunk", "head"}: the discriminator; {"generator": {"trunk", "head"}}: what is the generator's own.
    """

    config: ElectraConfig
    compute: ComputeConfig

    def init(self, key: jax.Array, batch: Mapping[str, jax.Array]) -> Any:
        """Returns {"params": boxed parameters}, as Linen's `init`."""

        def init(module: Any, key: jax.Array, *args: Any, **kwargs: Any) -> Any:
            return module.init(key, *args, **kwargs)["params"]

        trunk, head, small_trunk, small_head = self._modules()
        keys = jax.random.split(key, 4)
        inputs = _inputs(batch)
        state, small_state = (jnp.zeros((1, 1, t.config.embed_dim), self.compute.dtype) for t in (trunk, small_trunk))
        table = jnp.zeros((self.config.vocab_size, self.config.table_dim))
        own = init(small_trunk, keys[2], **inputs)
        generator = {
            "trunk": {name: value for name, value in own.items() if name not in _SHARED},
            "head": init(small_head, keys[3], small_state, None, table),
        }
        parts = {"trunk": init(trunk, keys[0], **inputs), "head": init(head, keys[1], state), "generator": generator}
        return {"params": parts}

    def apply(
        self, variables: Mapping[str, Any], batch: Mapping[str, jax.Array], key: Key = None
    ) -> ReplacedTokensOutputs:
        """Fills the masked tokens in and tells which tokens are not the original ones.

        Args:
          batch: what the trunk reads, `tokens` being the masked ones; original_tokens int32 [R, T]; the masked columns
            slot_positions int32 [R, S], weights float32 [R, S], 0 for an empty slot.
          key: PRNG key of dropout and of the samples; None computes without dropout and always draws the same noise.
        """
        params = variables["params"]
        trunk, head, small_trunk, small_head = self._modules()
        generator_key, sample_key, trunk_key = split_key(key, 3)
        inputs = _inputs(batch)

        shared = {name: value for name, value in params["trunk"].items() if name in _SHARED}
        small = {**shared, **params["generator"]["trunk"]}
        states = _run(small_trunk, small, **inputs, slot_positions=batch["slot_positions"], key=generator_key)
        factors = _run(small_head, params["generator"]["head"], states, None, params["trunk"]["tokens"])

        original = batch["original_tokens"]
        drawn = _sample(factors, jax.random.key(0) if sample_key is None else sample_key).astype(original.dtype)
        filled = _put(original, jnp.where(batch["weights"] > 0, batch["slot_positions"], original.shape[1]), drawn)
        states = _run(trunk, params["trunk"], **{**inputs, "tokens": filled}, key=trunk_key)
        return ReplacedTokensOutputs(factors, _run(head, params["head"], states), filled != original)

    def _modules(self) -> tuple[ElectraTrunk, ReplacedTokenHead, ElectraTrunk, nn.Module]:
        config, compute = self.config, self.compute
        small = generator_config(config)
        trunk, head = ElectraTrunk(config, compute), ReplacedTokenHead(config, compute)
        return trunk, head, ElectraTrunk(small, compute), _masked_lm(small, compute, 0)


def _run(module: nn.Module, params: Any, *args: Any, **kwargs: Any) -> Any:
    return module.apply({"params": params}, *args, **kwargs)


def _inputs(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    names = ("tokens", "segment_ids", "positions", "token_types")
    return {name: batch[name] for name in names if name in batch}


def _sample(factors: FactoredLogits, key: jax.Array) -> Int[Array, "R S"]:
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
        "masked_lm": _masked_lm,
    },
    networks={"replaced_tokens": ReplacedTokens},
    architectures={
        "classification": "ElectraForSequenceClassification",
        "masked_lm": "ElectraForMaskedLM",
        "replaced_tokens": "ElectraForPreTraining",
    },
    table=WeightMap(
        rows=(
            *embedding_rows("electra.embeddings."),
            Rule("trunk/project", "electra.embeddings_project.weight", "d e -> e d"),
            Rule("trunk/project_bias", "electra.embeddings_project.bias"),
            *stack_rows("electra.encoder.layer.{i}."),
            Rule("head/dense", "classifier.dense.weight", "e d -> d e"),
            Rule("head/dense_bias", "classifier.dense.bias"),
            Rule("head/out", "classifier.out_proj.weight", "c d -> d c"),
            Rule("head/out_bias", "classifier.out_proj.bias"),
            *masked_lm_rows("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
            Rule("head/detect", "discriminator_predictions.dense.weight", "e d -> d e"),
            Rule("head/detect_bias", "discriminator_predictions.dense.bias"),
            Rule("head/detect_out", "discriminator_predictions.dense_prediction.weight", "c d -> d c"),
            Rule("head/detect_out_bias", "discriminator_predictions.dense_prediction.bias"),
        ),
        prefix="electra.",
        ignore=(
            r"^discriminator_predictions\.",
            r"^generator_(predictions|lm_head)\.",
            r"embeddings\.position_ids$",
            r"^classifier\.",
            r"^qa_outputs\.",
        ),  # fmt: skip
        aliases=OLD_NORM_NAMES,
        not_exported=(r"^generator/",),
    ),
    from_hf=_from_hf,
    to_hf=lambda config: write_hf(config, _FIELDS),
)
