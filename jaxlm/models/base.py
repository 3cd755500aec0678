"""The records every family fills in, and `Model`: plain functions of plain pytrees for the rest of jaxlm."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from jaxlm.errors import UserError
from jaxlm.fields import MIX_PARTNER, MIX_SHARE
from jaxlm.models.weight_map import Rule, WeightMap
from jaxlm.nn.layers import ComputeConfig, Kernel, Key, split_key
from jaxlm.parallel.sharding import boxed_axes, is_axes, param_shardings

BATCH_INPUTS = ("tokens", "segment_ids", "positions", "token_types", "slot_positions")
"""What an encoder reads of a batch."""
CAUSAL_INPUTS = ("tokens", "segment_ids", "positions", "prefix", "slot_positions")
"""What a decoder or a recurrent model reads."""


class Head(NamedTuple):
    """One head of a family: how it is built, the name of HF's class, and where HF keeps its parameters."""

    build: Callable[[Any, ComputeConfig, int], nn.Module]
    """(config, compute, number of outputs) -> module, called as (states, batch, key) and returning the outputs. A
    module whose attribute `tied` is true is also given `table`, the token table [V, D]."""
    architecture: str
    """HF class name."""
    rules: tuple[Rule, ...] = ()
    """Rules of the head's parameters; those of another head may have the same names."""
    label_params: tuple[str, ...] = ()
    """Parameters with an entry for each label: a new label set needs new ones. Empty for a head without labels."""
    is_network: bool = False
    """`build` returns the whole network, called as (batch, key), and not only what reads a trunk's states."""
    inputs: tuple[str, ...] = ()
    """Batch arrays that it reads beside the family's."""


LABEL_PARAMS = ("head/out", "head/out_bias")
"""`Head.label_params` of every head that ends in the map `out`."""


def out_rules(module: str) -> tuple[Rule, ...]:
    """Returns the HF rules of a head's map `out`, from the name of its HF module."""
    return Rule("head/out", f"{module}.weight", "c d -> d c"), Rule("head/out_bias", f"{module}.bias")


def pooled_rules(dense: str, out: str) -> tuple[Rule, ...]:
    """Returns the HF rules of `heads.PooledClassifier`, from the names of its two HF modules."""
    return (
        Rule("head/dense", f"{dense}.weight", "e d -> d e"),
        Rule("head/dense_bias", f"{dense}.bias"),
        *out_rules(out),
    )


@dataclass(frozen=True, eq=False)  # compared and hashed by identity, so that a `Model` can be a static argument of jit
class Family:
    """One architecture: everything that the rest of jaxlm knows about it.

    Every config class has at least: vocab_size, max_positions (longest example), pad_id, dropout, attention_dropout,
    classifier_dropout. Every trunk has its token table as attribute and parameter `tokens` [V, D].
    """

    name: str
    """HF's `model_type`."""
    config: type
    presets: Mapping[str, Any]
    published: Mapping[str, int]
    """Preset -> published parameter count: as a language model (causal_lm, seq2seq_lm) where the family has such a
    head, else as a classifier of two labels."""
    trunk: Callable[[Any, ComputeConfig], nn.Module]
    """(config, compute) -> module; called by name with those of `inputs` that a batch has, and a key; returns [B, S, D]
    (slots given) or [B, T, D]."""
    heads: Mapping[str, Head]
    """By kind: classification, masked_lm, ..."""
    trunk_map: WeightMap
    """Rules of the trunk's parameters, and the checkpoint keys that neither the trunk nor a head reads."""
    from_hf: Callable[[Mapping[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    """UserError for a config that no checkpoint of the family can have."""
    inputs: tuple[str, ...] = BATCH_INPUTS
    """Batch arrays that the trunk reads."""
    pool: Literal["first", "last"] = "first"
    """The token of an example that a classification head reads: "first" ([CLS]) or "last" (models that look back)."""
    init_cache: Callable[[Any, int, int, Any], Any] | None = None
    """(config, rows, length, dtype) -> the empty state of step-by-step decoding; None: the family cannot generate."""

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the trunk reads a text and a target: it then has `encode` and `decode` (`Model.encode`)."""
        return "decoder_tokens" in self.inputs

    def weight_map(self, head: str) -> WeightMap:
        """Returns the rules of a model with this kind of head; what belongs to other heads is ignored."""
        trunk, own = self.trunk_map, self.heads[head].rules
        of_heads = {rule.key for other in self.heads.values() for rule in other.rules}
        of_heads |= {rule.twin for other in self.heads.values() for rule in other.rules if rule.twin}
        ignore = tuple(f"^{re.escape(key)}$" for key in sorted(of_heads))
        # What another head is tied to says nothing of this one.
        foreign = of_heads - {rule.key for rule in own}
        copies = tuple(pair for pair in trunk.copies if pair[0] not in foreign)
        return dataclasses.replace(trunk, rules=trunk.rules + own, ignore=trunk.ignore + ignore, copies=copies)


class Network(nn.Module):
    """A trunk and a head that reads its states: one per example slot, or all of them."""

    trunk: nn.Module
    head: nn.Module
    inputs: tuple[str, ...]

    def __call__(self, batch: Mapping[str, jax.Array], key: Key = None) -> Any:
        trunk_key, head_key = split_key(key, 2)
        states = self.trunk(**{name: batch[name] for name in self.inputs if name in batch}, key=trunk_key)
        if MIX_SHARE in batch:
            states = mix_states(states, batch[MIX_PARTNER], batch[MIX_SHARE])
        return self._outputs(states, batch, head_key)

    def encode(self, batch: Mapping[str, jax.Array]) -> Any:
        """What the decoder reads of the encoder's texts."""
        return cast(Any, self.trunk).encode(**batch)

    def decode(self, batch: Mapping[str, jax.Array], cache: Any, encoded: Any = None) -> tuple[Any, Any]:
        """One step of generation: the head's outputs at the last column, and the cache with these tokens in it."""
        if encoded is None:
            states, cache = self.trunk(**batch, cache=cache)
        else:
            states, cache = cast(Any, self.trunk).decode(**batch, encoded=encoded, cache=cache)
        return self._outputs(states[:, -1:], batch, None), cache

    def _outputs(self, states: jax.Array, batch: Mapping[str, jax.Array], key: Key) -> Any:
        if getattr(self.head, "tied", False):
            return self.head(states, batch, key, cast(Any, self.trunk).tokens)
        return self.head(states, batch, key)


def mix_states(states: jax.Array, partner: jax.Array, share: jax.Array) -> jax.Array:
    """Returns share * x_i + (1 - share) * x_j of the states [B, S, D] of examples and their partners' (`fields`)."""
    others = states.reshape(-1, states.shape[-1])[partner.reshape(-1)].reshape(states.shape)
    part = share[..., None].astype(states.dtype)
    return part * states + (1 - part) * others


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
        heads = self.family.heads
        if self.head not in heads:
            raise UserError(f"model family {self.family.name!r} has no {self.head} head; it has: {', '.join(heads)}")
        self.family.to_hf(self.config)  # what could not be exported is refused now, not after training
        head = heads[self.head]
        module = head.build(self.config, self.compute, self.num_outputs)
        if head.is_network:
            return module
        return Network(self.family.trunk(self.config, self.compute), module, self.family.inputs)

    @property
    def weight_map(self) -> WeightMap:
        """The rules between this model's parameters and an HF checkpoint's tensors."""
        return self.family.weight_map(self.head)

    def _boxed(self, key: jax.Array) -> Any:
        network = self._network
        names = (*self.family.inputs, *self.family.heads[self.head].inputs)
        batch = {name: jnp.zeros((1, 2), jnp.int32) for name in names}
        if "slot_positions" in batch:
            batch["slot_positions"] = jnp.zeros((1, 1), jnp.int32)
        return network.init(key, batch)["params"]

    def init(self, key: jax.Array) -> Any:
        """Returns freshly initialized float32 parameters."""
        return meta.unbox(self._boxed(key))

    def apply(self, params: Any, batch: Mapping[str, jax.Array], key: Key = None) -> Any:
        """Computes the head's outputs.

        Args:
          batch: the packed batch (docs/design.md), of which the arrays in `family.inputs` are read: int32 [B, T], and
            slot_positions int32 [B, S].
          key: PRNG key of the dropout masks; None computes without dropout.
        Returns:
          float32 [B, S, num_outputs] of a classification head; of a language-model head the factors of its logits
          (`heads.FactoredLogits`). A head answers at the slots where the batch has slot_positions, else at all
          positions.
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

    def encode(self, params: Any, tokens: jax.Array, segment_ids: jax.Array, positions: jax.Array) -> Any:
        """Reads the texts of an encoder-decoder, once for all tokens that are then written.

        Args:
          tokens, segment_ids, positions: int32 [B, T], a text to a row: segment 1, and 0 where padded, on either side.
        Returns:
          What `decode` takes: a tree of arrays, each with rows as its first axis, that may be taken and replaced.
        Raises:
          UserError: the family has no encoder beside its decoder.
        """
        if not self.family.is_encoder_decoder:
            raise UserError(
                f"model family {self.family.name!r} has no encoder beside a decoder; expected one such as t5"
            )
        batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
        return self._network.apply({"params": params}, batch, method=self._network.encode)

    def decode(
        self,
        params: Any,
        tokens: jax.Array,
        segment_ids: jax.Array,
        positions: jax.Array,
        cache: Any,
        prefix: jax.Array | None = None,
        encoded: Any = None,
    ) -> tuple[Any, Any]:
        """Reads further tokens of each row and returns what the head says at the last of them.

        An encoder-decoder's first token is `config.decoder_start_id`.

        Args:
          tokens, segment_ids, positions: int32 [B, T], T columns that follow those already in the cache. Prompts of
            different lengths are padded on the left, with segment 0.
          cache: from `init_cache` or the last call.
          prefix: int32 [B, T], 1 for tokens that all of these columns read, before them or not.
          encoded: from `encode`, of an encoder-decoder: of B rows, or of B / G where each is read by G rows that follow
            one another (beams).
        Returns:
          The head's outputs [B, 1, ...], and the cache with these tokens in it.
        """
        batch = {"tokens": tokens, "segment_ids": segment_ids, "positions": positions}
        if prefix is not None:
            batch["prefix"] = prefix
        return cast(Any, self._network.apply({"params": params}, batch, cache, encoded, method=self._network.decode))

    @cached_property
    def axes(self) -> Any:
        """Tree of logical-axis names, one tuple per parameter."""
        return boxed_axes(self._declared)

    @cached_property
    def kernels(self) -> dict[str, int]:
        """The weights of dense maps: path -> how many axes, after `layers`, are inputs."""
        leaves, _ = jax.tree_util.tree_flatten_with_path(self._declared, is_leaf=lambda leaf: isinstance(leaf, Kernel))
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.contract
            for path, leaf in leaves
            if isinstance(leaf, Kernel)
        }

    @property
    def _declared(self) -> Any:
        return _declared(dataclasses.replace(self, compute=ComputeConfig()))

    @cached_property
    def shapes(self) -> Any:
        """Tree of ShapeDtypeStructs; with the shardings of `compute.rules` where these have a mesh.

        Raises:
          UserError: a dimension does not divide by the mesh axis it is split over.
        """
        shapes = meta.unbox(self._declared)
        if self.compute.rules.mesh is None:
            return shapes
        shardings = param_shardings(self.axes, shapes, self.compute.rules)
        return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), shapes, shardings)

    @property
    def width(self) -> int:
        """Numbers of a state of the trunk; 0 where the family's config does not say."""
        return int(getattr(self.config, "embed_dim", 0))

    @property
    def num_parameters(self) -> int:
        return sum(math.prod(s.shape) for s in jax.tree.leaves(self.shapes))


@lru_cache(maxsize=16)
def _declared(model: Model) -> Any:
    """The parameters' shapes, boxed with their axes: those of a model do not depend on how it is computed."""
    return jax.eval_shape(model._boxed, jax.random.key(0))


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
