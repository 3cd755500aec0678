"""What a decoder reads of an encoder: its states while training, keys and values projected once while generating.

Shape letters: B rows, R rows of the decoder, T query length, S encoder length, D embed, N heads, H head_dim, L layers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta
from jaxtyping import Array, Float, Int

from jaxlm.nn.attention import Mask, attend
from jaxlm.nn.layers import ComputeConfig, shard_heads
from jaxlm.parallel.sharding import Rules, constrain


class States(NamedTuple):
    """The encoder's states; each layer of the decoder projects them."""

    states: Float[Array, "B S D"]
    segment_ids: Int[Array, "B S"]

    def attend(
        self,
        q_BTNH: Float[Array, "B T N H"],
        k_BSNH: Float[Array, "B S N H"],
        v_BSNH: Float[Array, "B S N H"],
        segment_ids_BT: Int[Array, "B T"],
        compute: ComputeConfig,
        **settings: Any,
    ) -> Float[Array, "B T N H"]:
        """Returns one layer's cross-attention.

        Args:
          k_BSNH, v_BSNH: its projections of the states.
          settings: scale and dropout of `attend`.
        """
        q, k, v = shard_heads(q_BTNH, k_BSNH, v_BSNH, compute.rules)
        return attend(q, k, v, Mask(segment_ids_BT, self.segment_ids), compute, **settings)


class Encoded(NamedTuple):
    """Keys and values of the cross-attention of all layers, and which of them are there (segment 0: none).

    Rows come first in every array, so that rows may be taken, repeated and replaced; heads before columns, as `KVCache`
    has them.
    """

    keys: Float[Array, "B L N S H"]
    values: Float[Array, "B L N S H"]
    segment_ids: Int[Array, "B S"]

    @classmethod
    def of_layers(cls, block: nn.Module, layers: Any, context: States, rules: Rules) -> Encoded:
        """Returns what all layers read.

        Args:
          block: a layer, whose `cross_keys_values` projects the encoder's states to keys and values [B, S, N, H].
          layers: its parameters, stacked.
        """

        def project(layer: Any) -> Any:
            return block.apply({"params": layer}, context.states, method="cross_keys_values")

        axes = ("batch", None, "act_heads", "kv_length", "head_dim")
        projected = jax.lax.map(project, meta.unbox(layers))
        keys, values = (constrain(x.transpose(1, 0, 3, 2, 4), axes, rules) for x in projected)
        return cls(keys, values, context.segment_ids)

    def attend(
        self,
        q_RTNH: Float[Array, "R T N H"],
        segment_ids_RT: Int[Array, "R T"],
        layer: Any,
        compute: ComputeConfig,
        *,
        scale: float | None = None,
    ) -> Float[Array, "R T N H"]:
        """Returns one layer's cross-attention, without dropout.

        Several rows of the decoder may read one row of the encoder (beams): of R = B x G, row r reads row r // G. They
        are laid beside one another as queries, so that keys and values are neither copied nor read again.
        """
        of_layer = (jax.lax.dynamic_index_in_dim(x, layer, axis=1, keepdims=False) for x in (self.keys, self.values))
        k, v = (jnp.swapaxes(x, 1, 2) for x in of_layer)
        rows = self.segment_ids.shape[0]
        q = q_RTNH.reshape(rows, -1, *q_RTNH.shape[2:])
        q = constrain(q, ("batch", "length", "act_heads", "head_dim"), compute.rules)
        # In columns of their own: no kernel for whole rows serves so few queries.
        segments = segment_ids_RT.reshape(rows, -1)
        mask = Mask(segments, self.segment_ids, jnp.zeros_like(segments))
        return attend(q, k, v, mask, compute, scale=scale).reshape(q_RTNH.shape)
