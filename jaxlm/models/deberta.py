"""DeBERTa-v2 and v3 (He et al., 2021, arXiv:2006.03654 and arXiv:2111.09543): BERT's network with disentangled
attention, in which contents and relative positions have queries and keys of their own.

Shape letters: B rows, Q queries, T row length, N heads, H head_dim, D embed, R rows of the table of positions, U = 2T
distances.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlm.errors import UserError
from jaxlm.models.encoder import Block, EncoderConfig, EncoderTrunk, Stack
from jaxlm.nn.attention import Mask
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import (
    ComputeConfig,
    Key,
    dense,
    dense_again,
    embedding_table,
    take_columns,
)
from jaxlm.nn.norms import layer_norm
from jaxlm.nn.relative_positions import by_distance
from jaxlm.parallel.sharding import constrain


@dataclass(frozen=True)
class DebertaConfig:
    vocab_size: int = 128100
    num_layers: int = 12
    embed_dim: int = 768
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    num_types: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-7
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    """In front of a classifier's last map."""
    pooler_dropout: float = 0.0
    """In front of its first one."""
    pooler_activation: str = "gelu"
    init_std: float = 0.02
    pad_id: int = 0
    tied: bool = True
    """Logits of masked language modelling by the token table."""
    num_buckets: int | None = 256
    """Relative positions in each direction that are told apart: near ones each, far ones in ranges that widen with the
    logarithm of the distance. Absent: all up to `max_distance`."""
    max_distance: int | None = None
    """Relative position of the last bucket; absent: `max_positions`."""
    own_position_maps: bool = False
    """Relative positions have query and key maps of their own, and not those of the contents."""
    normalized_positions: bool = True
    """The table of relative positions is normalized before the maps."""
    absolute_positions: bool = False
    """The embeddings also add a row for each absolute position."""

    def __post_init__(self) -> None:
        if self.num_buckets is not None and not 4 <= self.num_buckets <= 2 * self.farthest - 4:
            raise UserError(
                f"model config: expected 4 buckets of relative positions at least, and half of their number at most 2 "
                f"below the farthest distance {self.farthest}, found {self.num_buckets}"
            )

    @property
    def farthest(self) -> int:
        return self.max_positions if self.max_distance is None else self.max_distance

    @property
    def span(self) -> int:
        """Half the rows of the table of relative positions."""
        return self.farthest if self.num_buckets is None else self.num_buckets


def position_rows(distances: np.ndarray, num_buckets: int | None, max_distance: int) -> np.ndarray:
    """Returns the row of the table of relative positions for each distance, query's column minus key's."""
    span, rows = max_distance, distances
    if num_buckets is not None:
        span, middle = num_buckets, num_buckets // 2
        # In float32, since the published models were trained with what it rounds to.
        far = np.maximum(np.abs(distances), middle).astype(np.float32)
        octaves = np.log(far / np.float32(middle)) / np.log(np.float32((max_distance - 1) / middle))
        widening = np.ceil(octaves * np.float32(middle - 1)) + np.float32(middle)
        rows = np.where(np.abs(distances) <= middle, distances, np.sign(distances) * widening).astype(np.int64)
    return np.clip(rows + span, 0, 2 * span - 1)


@dataclass(frozen=True)
class DisentangledConfig(EncoderConfig):
    """What the trunk reads of a `DebertaConfig`."""

    num_buckets: int | None = None
    max_distance: int = 512
    own_position_maps: bool = False
    normalized_positions: bool = True


_HEADS = ("embed", "heads", "head_dim")


class DisentangledBlock(Block):
    """A block whose logits are content to content, content to position and position to content."""

    def relative_bias(
        self, q_BQNH: jax.Array, k_BTNH: jax.Array, mask: Mask, relative: Any, key: Key
    ) -> tuple[jax.Array | None, float | None]:
        """The logits' two terms that read relative positions; XLA computes them, in [B, N, T, 2T] float32 numbers each.

        Args:
          relative: float32 [R, D], the table of relative positions.
        """
        c: Any = self.config
        rules, length, head_dim = self.compute.rules, k_BTNH.shape[1], k_BTNH.shape[3]
        positions_key = None if key is None else jax.random.fold_in(key, 0)
        x_1RD = dropout(relative.astype(self.compute.dtype), c.dropout, positions_key)[None]
        q_RNH, k_RNH = (
            constrain(self._of_positions(name, x_1RD)[0], (None, "act_heads", "head_dim"), rules) for name in "qk"
        )

        scale = 1 / math.sqrt(3 * head_dim)
        distances = np.arange(1 - length, length + 1)  # the other's column minus one's own
        rows = position_rows(-distances, c.num_buckets, c.max_distance)
        opposite = position_rows(distances, c.num_buckets, c.max_distance)
        product = lambda x, y: jnp.einsum(  # noqa: E731
            "BTNH,UNH->BNTU", x, y, preferred_element_type=jnp.float32
        )
        to_position = product(q_BQNH, k_RNH[rows])
        to_position = constrain(to_position, ("batch", "act_heads", "length", None), rules)
        to_content = by_distance(product(k_BTNH, q_RNH[opposite])).swapaxes(2, 3)
        if mask.columns_BT is None:
            to_position = by_distance(to_position)
        else:
            to_position = _windows(to_position, length - 1 - mask.columns_BT, length)
            to_content = take_columns(to_content, mask.columns_BT, axis=2)
        bias = (to_position + to_content) * scale
        return constrain(bias, ("batch", "act_heads", "length", "kv_length"), rules), scale

    def _of_positions(self, name: str, x_1RD: jax.Array) -> Float[Array, "1 R N H"]:
        """The queries or keys of relative positions: by maps of their own, or by those of the contents."""
        c: Any = self.config
        if not c.own_position_maps:
            return dense_again(self, name, x_1RD, _HEADS, heads_apart=True)
        sizes = (c.embed_dim, c.num_heads, c.embed_dim // c.num_heads)
        return dense(self, f"position_{name}", x_1RD, sizes, _HEADS, heads_apart=True)


def _windows(x_BNQU: jax.Array, starts_BQ: Int[Array, "B Q"], length: int) -> Float[Array, "B N Q T"]:
    """Returns `length` entries of each query's row, from its start on."""

    def one(x_NU: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x_NU, start, length, axis=1)

    return jax.vmap(jax.vmap(one, (1, 0), 1))(x_BNQU, starts_BQ)


class DisentangledStack(Stack):
    block: type[Block] = DisentangledBlock

    def relative_positions(self, length: int) -> Float[Array, "R D"]:
        """The table of relative positions, which all layers share."""
        c: Any = self.config
        span = c.max_distance if c.num_buckets is None else c.num_buckets
        table = embedding_table(self, "positions", 2 * span, c.embed_dim, "positions")
        table = constrain(table, (None, None), self.compute.rules)
        return layer_norm(self, "positions_norm", table, c.norm_eps) if c.normalized_positions else table


def make_trunk(config: DebertaConfig, compute: ComputeConfig) -> EncoderTrunk:
    """A `Family.trunk`."""
    c = config
    encoder = DisentangledConfig(
        vocab_size=c.vocab_size, num_positions=c.max_positions if c.absolute_positions else 0, num_types=c.num_types,
        table_dim=c.embed_dim, num_layers=c.num_layers, embed_dim=c.embed_dim, num_heads=c.num_heads, mlp_dim=c.mlp_dim,
        activation=c.activation, norm_eps=c.norm_eps, dropout=c.dropout, attention_dropout=c.attention_dropout,
        attention_output_dropout=c.dropout, init_std=c.init_std, num_buckets=c.num_buckets, max_distance=c.farthest,
        own_position_maps=c.own_position_maps, normalized_positions=c.normalized_positions,
    )  # fmt: skip
    return EncoderTrunk(encoder, compute, DisentangledStack)
