"""What a decoder reads of an encoder: its states while training, keys and values projected once while generating.

Shape letters: B rows, R rows of the decoder, T query length, S encoder length, D embed, N heads, H head_dim, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlm.nn.attention import Mask, attend
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.sharding import Rules, constrain


class States(NamedTuple):
    """The encoder's states; each layer of the decoder projects them."""

    states: Float[Array, "B S D"]
    segment_ids: Int[Array, "B S"]


class Encoded(NamedTuple):
    """Keys and values of the cross-attention of all layers, and which of them are there (segment 0: none).

    Rows come first in every array, so that rows may be taken, repeated and replaced.
    """

    keys: Float[Array, "B L S N H"]
    values: Float[Array, "B L S N H"]
    segment_ids: Int[Array, "B S"]

    @classmethod
    def of_layers(cls, project: Callable[[Any], Any], layers: Any, context: States, rules: Rules) -> Encoded:
        """Returns what all layers read; `project` maps one layer's parameters to its keys and values [B, S, N, H]."""
        axes = ("batch", None, "kv_length", "act_heads", "head_dim")
        keys, values = (constrain(jnp.moveaxis(x, 0, 1), axes, rules) for x in jax.lax.map(project, layers))
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
        k, v = (jax.lax.dynamic_index_in_dim(x, layer, axis=1, keepdims=False) for x in (self.keys, self.values))
        rows = self.segment_ids.shape[0]
        q = q_RTNH.reshape(rows, -1, *q_RTNH.shape[2:])
        q = constrain(q, ("batch", "length", "act_heads", "head_dim"), compute.rules)
        # In columns of their own: no kernel for whole rows serves so few queries.
        segments = segment_ids_RT.reshape(rows, -1)
        mask = Mask(segments, self.segment_ids, jnp.zeros_like(segments))
        return attend(q, k, v, mask, compute, scale=scale).reshape(q_RTNH.shape)
