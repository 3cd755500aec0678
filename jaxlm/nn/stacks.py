"""Stacks of equal layers: their parameters along one axis, run by a scan or unrolled, recomputed or skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from jaxlm.errors import UserError
from jaxlm.nn.layers import ComputeConfig, Key, split_key
from jaxlm.nn.remat import recompute

_LAYER_DROP = 0x1A7E
"""Folded into a layer's key, whose own splits are the layer's dropout masks."""


def init_stack(block: nn.Module, num_layers: int, *args: Any) -> Callable[[jax.Array], Any]:
    """Returns an initializer of `num_layers` copies of a block's parameters, stacked along a new axis `layers`."""
    # Parameters do not depend on the kernel, and cuDNN's cannot be mapped over layers.
    block = block.clone(compute=replace(block.compute, attention="xla"))

    def init(key: jax.Array) -> Any:
        one = lambda k: block.init(k, *args)["params"]  # noqa: E731
        stacked = jax.vmap(one)(jax.random.split(key, num_layers))
        return meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "layers"})

    return init


def declare_stack(module: nn.Module, name: str, init: Callable[[jax.Array], Any]) -> Any:
    """Declares stacked layers (`init_stack`), as `Module.param` would; their tree may hold adapters, too."""
    if module.has_variable("params", name):
        return meta.unbox(module.get_variable("params", name))
    return module.param(name, init)


def run_stack(
    apply: Callable[[Any, Any, Key], Any],
    params: Any,
    x: Any,
    key: Key,
    compute: ComputeConfig,
    last: Callable[[Any, Any, Key], Any] | None = None,
) -> Any:
    """Runs stacked layers in order.

    Args:
      apply: (one layer's parameters, x, key) -> x.
      params: tree of [L, ...] arrays: parameters, and other values that differ between layers.
      x: the carry from layer to layer, an array or a tree: the states, and a cache of all layers.
      last: replaces `apply` in the last layer, where the model reads only some positions of its output.
    """
    num_layers = jax.tree.leaves(params)[0].shape[0]
    if compute.layer_drop and key is not None:
        apply = _dropping(apply, compute.layer_drop)
    unrolled = compute.unroll >= num_layers
    step = recompute(apply, compute.remat, compute.rules, scanned=not unrolled)
    final = recompute(last, compute.remat, compute.rules, scanned=False) if last else step
    if unrolled:
        layers = _unstack(params, num_layers)
        for layer, k in zip(layers, split_key(key, num_layers), strict=True):
            x = (final if layer is layers[-1] else step)(layer, x, k)
        return x

    keys = None if key is None else jax.random.split(key, num_layers)
    scanned = num_layers if last is None else num_layers - 1
    take = lambda part: jax.tree.map(lambda p: p[part], (params, keys))  # noqa: E731
    if scanned:
        x, _ = jax.lax.scan(
            lambda x, layer: (step(layer[0], x, layer[1]), None), x, take(slice(0, scanned)), unroll=compute.unroll
        )
    if last is not None:
        layer, k = take(num_layers - 1)
        x = final(layer, x, k)
    return x


def _dropping(apply: Callable[[Any, Any, Key], Any], rate: float) -> Callable[[Any, Any, Key], Any]:
    """Skips a layer at random (Fan et al., 2020, LayerDrop, arXiv:1909.11556); what is kept is not scaled."""

    def apply_or_skip(layer: Any, x: Any, key: Key) -> Any:
        assert key is not None
        y = apply(layer, x, key)
        shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (x, y)]
        if shapes[0] != shapes[1]:
            raise UserError("model.layer_drop: a layer of this model changes the width, and cannot be skipped")
        kept = jax.random.bernoulli(jax.random.fold_in(key, _LAYER_DROP), 1 - rate)
        return jax.tree.map(lambda new, old: jnp.where(kept, new, old.astype(new.dtype)), y, x)

    return apply_or_skip


def _unstack(params: Any, num_layers: int) -> list[Any]:
    """Splits stacked parameters by layer; the gradient concatenates the layers', where indexing would pad and add."""
    leaves, tree = jax.tree.flatten(params)
    parts = [[part[0] for part in jax.lax.split(leaf, (1,) * num_layers)] for leaf in leaves]
    return [jax.tree.unflatten(tree, layer) for layer in zip(*parts, strict=True)]
