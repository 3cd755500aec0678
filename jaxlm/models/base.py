"""The records every family fills in, and `Model`: plain functions of plain pytrees for the rest of jaxlm."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from jaxlm.errors import UserError
from jaxlm.models.weight_map import WeightMap
from jaxlm.nn.layers import ACTIVATIONS, ComputeConfig, Key, split_key
from jaxlm.parallel.sharding import boxed_axes, is_axes, param_shardings

BATCH_INPUTS = ("tokens", "segment_ids", "positions", "token_types", "slot_positions")
"""What an encoder reads of a batch."""
CAUSAL_INPUTS = ("tokens", "segment_ids", "positions", "prefix", "slot_positions")
"""What a decoder or a recurrent model reads."""


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, so that a `Model` can be a static argument of jit
class Family:
    """One architecture: everything that the rest of jaxlm knows about it.

    Every config class has at least: vocab_size, max_positions (longest example), pad_id, dropout, attention_dropout,
    classifier_dropout. Every trunk names its token embedding table `tokens` [V, D].
    """

    name: str
    """HF's `model_type`."""
    config: type
    presets: Mapping[str, Any]
    published: Mapping[str, int]
    """Preset -> published parameter count: as a language model (causal_lm, seq2seq_lm) where the family has such a
    head, else as a classifier of two labels."""
    trunk: Callable[[Any, ComputeConfig], nn.Module]
    """(config, compute) -> module; called by name with those of `inputs` that a batch has, and a key; returns [R, S, D]
    (slots given) or [R, T, D]."""
    heads: Mapping[str, Callable[[Any, ComputeConfig, int], nn.Module]]
    """Head kind -> (config, compute, number of outputs) -> module from (states, key, token table) to outputs."""
    architectures: Mapping[str, str]
    """Head kind -> HF class name."""
    table: WeightMap
    from_hf: Callable[[Mapping[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    """UserError for a config that no checkpoint of the family can have."""
    inputs: tuple[str, ...] = BATCH_INPUTS
    """Batch arrays that the trunk reads."""
    pool: str = "first"
    """The token of an example that a classification head reads: "first" ([CLS]) or "last" (models that look back)."""
    networks: Mapping[str, Callable[[Any, ComputeConfig], Any]] = field(default_factory=dict)
    """Head kind -> network, where it is more than the trunk under a head."""
    init_cache: Callable[[Any, int, int, Any], Any] | None = None
    """(config, rows, length, dtype) -> the empty state of step-by-step decoding; None: the family cannot generate."""


class Network(nn.Module):
    """A trunk and a head that reads its states: one per example slot, or all of them."""

    trunk: nn.Module
    head: nn.Module
    inputs: tuple[str, ...]

    def __call__(self, batch: Mapping[str, jax.Array], key: Key = None) -> Any:
        trunk_key, head_key = split_key(key, 2)
        states = self.trunk(**{name: batch[name] for name in self.inputs if name in batch}, key=trunk_key)
        return self.head(states, head_key, self._token_table())

    def decode(self, batch: Mapping[str, jax.Array], cache: Any) -> tuple[Any, Any]:
        """One step of generation: the head's outputs at the last column, and the cache with these tokens in it."""
        states, cache = self.trunk(**batch, cache=cache)
        return self.head(states[:, -1:], None, self._token_table()), cache

    def _token_table(self) -> jax.Array:
        return meta.unbox(self.trunk.variables["params"]["tokens"])


@dataclass(frozen=True)
class Model:
    """A family's network with a head: `init` and `apply` over an unboxed parameter tree {"trunk": ..., "head": ...}."""

    family: Family
    config: Any
    head: str
    num_outputs: int
    compute: ComputeConfig = ComputeConfig()

    @cached_property
    def _network(self) -> Any:
        kinds = (*self.family.heads, *self.family.networks)
        if self.head not in kinds:
            raise UserError(f"model family {self.family.name!r} has no {self.head} head; it has: {', '.join(kinds)}")
        self.family.to_hf(self.config)  # what could not be exported is refused now, not after training
        if self.head in self.family.networks:
            return self.family.networks[self.head](self.config, self.compute)
        return Network(
            self.family.trunk(self.config, self.compute),
            self.family.heads[self.head](self.config, self.compute, self.num_outputs),
            self.family.inputs,
        )

    def _boxed(self, key: jax.Array) -> Any:
        batch = {name: jnp.zeros((1, 2), jnp.int32) for name in self.family.inputs}
        if "slot_positions" in batch:
            batch["slot_positions"] = jnp.zeros((1, 1), jnp.int32)
        return self._network.init(key, batch)["params"]

    def init(self, key: jax.Array) -> Any:
        """Returns freshly initialised float32 parameters."""
        return meta.unbox(self._boxed(key))

    def apply(self, params: Any, batch: Mapping[str, jax.Array], key: Key = None) -> Any:
        """Computes the head's outputs.

        Args:
          batch: the packed batch (docs/design.md), of which the arrays in `family.inputs` are read: int32 [R, T], and
            slot_positions int32 [R, S].
          key: PRNG key of the dropout masks; None computes without dropout.
        Returns:
          float32 [R, S, num_outputs] of a classification head; of a language-model head the factors of its logits
          (`heads.LogitFactors`), at the slots where the batch has slot_positions, else at all positions.
        """
        return self._network.apply({"params": params}, batch, key)

    def init_cache(self, rows: int, length: int) -> Any:
        """Returns the state of step-by-step decoding before the first token.

        Args:
          length: most tokens of a row, prompt and continuation.
        Raises:
          UserError: the family cannot generate.
        """
        if self.family.init_cache is None:
            raise UserError(f"model family {self.family.name!r} cannot generate text")
        return self.family.init_cache(self.config, rows, length, self.compute.dtype)

    def decode(
        self,
        params: Any,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        cache: Any,
        prefix: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Reads further tokens of each row and returns what the head says at the last of them.

        Args:
          tokens, segment_ids, positions: int32 [R, T], T columns that follow those already in the cache. Prompts of
            different lengths are padded on the left, with segment 0.
          cache: from `init_cache` or the last call.
          prefix: int32 [R, T], 1 for tokens that all of these columns read, before them or not.
        Returns:
          The head's outputs [R, 1, ...], and the cache with these tokens in it.
        """
        batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
        if prefix is not None:
            batch["prefix"] = prefix
        return cast(Any, self._network.apply({"params": params}, batch, cache, method=self._network.decode))

    @cached_property
    def axes(self) -> Any:
        """Tree of logical-axis names, one tuple per parameter."""
        return boxed_axes(jax.eval_shape(self._boxed, jax.random.key(0)))

    @cached_property
    def shapes(self) -> Any:
        """Tree of ShapeDtypeStructs; with the shardings of `compute.rules` where these have a mesh.

        Raises:
          UserError: a dimension does not divide by the mesh axis it is split over.
        """
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        if self.compute.rules.mesh is None:
            return shapes
        shardings = param_shardings(self.axes, shapes, self.compute.rules)
        return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(s.shape) for s in jax.tree.leaves(self.shapes))


def flatten(tree: Any) -> dict[str, Any]:
    """Nested dicts -> {"trunk/layers/q": leaf}; tuples of axis names count as leaves."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_axes)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def override(config: Any, changes: Mapping[str, Any]) -> Any:
    """Returns a config with fields replaced.

    Raises:
      UserError: a field that the family's config does not have, or of another type.
    """
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name, value in changes.items():
        if name not in fields:
            raise UserError(f"model.config.{name}: unknown field; {type(config).__name__} has {', '.join(fields)}")
        expected = type(fields[name])
        if expected is float and type(value) is int:
            continue
        if fields[name] is not None and value is not None and type(value) is not expected:
            raise UserError(f"model.config.{name}: expected {expected.__name__}, found {value!r}")
    return dataclasses.replace(config, **changes)


def read_hf(config: Mapping[str, Any], fields: Mapping[str, str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Translates an HF config.json by a {our field: HF key} map.

    Args:
      defaults: by HF key, what an absent key or null means.
    Raises:
      UserError: a key without a value or a default.
    """
    values = {}
    for ours, theirs in fields.items():
        value = config.get(theirs)
        if value is None and theirs not in defaults:
            raise UserError(f"config.json: expected the key {theirs!r}, which is absent")
        if value is None:
            value = defaults[theirs]
        values[ours] = float(value) if isinstance(defaults.get(theirs), float) else value
    return values


def write_hf(config: Any, fields: Mapping[str, str]) -> dict[str, Any]:
    """The inverse of `read_hf`."""
    return {theirs: getattr(config, ours) for ours, theirs in fields.items()}


def check_encoder(config: Mapping[str, Any], activation_key: str = "hidden_act") -> None:
    """Refuses variants of an encoder that would load without an error and compute something else.

    Raises:
      UserError: decoder or cross-attention checkpoints, relative positions, an unknown activation.
    """
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise UserError(f"config.json: {key}=true is not supported; expected an encoder")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"config.json: position_embedding_type={config['position_embedding_type']!r} is not supported; "
            "expected 'absolute'"
        )
    act = config.get(activation_key, "gelu")
    if act not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise UserError(f"config.json: {activation_key}={act!r} is not supported; expected one of {known}")
