"""Draws the top layers of a pretrained model afresh (Zhang et al., 2021, "Revisiting Few-sample BERT Fine-tuning",
arXiv:2006.05987): they know most of the pretraining task, and are what transfers least."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.errors import UserError
from jaxlm.models.base import Model, flatten
from jaxlm.models.places import check_own_layers, places, stack_sizes, unflatten


def reinit_layers(params: Any, model: Model, number: int, key: jax.Array) -> Any:
    """Returns parameters of which the top `number` layers are as `model.init` draws them; `params` are given up.

    Of an encoder-decoder these are the decoder's. The head is not touched: `model.new_head` draws that.

    Raises:
      UserError: the model has fewer layers, or its layers share their parameters.
    """
    if not number:
        return params
    found = places(model)
    check_own_layers(model, found, "model.reinit_layers")
    sizes = stack_sizes(found)
    stack = "decoder" if "decoder" in sizes else ""
    if stack not in sizes or number > sizes[stack]:
        has = sizes.get(stack, 0)
        raise UserError(f"model.reinit_layers={number}: the model has {has} layers; expected at most as many")
    lowest = sizes[stack] - number
    fresh = {
        name: np.arange(place.first, place.first + place.count) >= lowest
        for name, place in found.items()
        if place.part == "layers" and place.stack == stack
    }

    def mix(params: Any, key: jax.Array) -> Any:
        drawn = flatten(model.init(key))
        return unflatten({
            name: value if name not in fresh
            else jnp.where(jnp.asarray(fresh[name]).reshape(-1, *[1] * (value.ndim - 1)), drawn[name], value)
            for name, value in flatten(params).items()
        })  # fmt: skip

    shardings = None if model.compute.rules.mesh is None else jax.tree.map(lambda s: s.sharding, model.shapes)
    return jax.jit(mix, donate_argnums=0, out_shardings=shardings)(params, key)
