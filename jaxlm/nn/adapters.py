"""Adapters beside a dense map: what a few trained numbers change in it while its own weights are frozen.

An adapter's arrays stand beside the kernel in the parameter tree, named after it: `q_lora_a` beside `q`. A map without
such arrays is computed as if this file did not exist.

- LoRA (Hu et al., 2021, arXiv:2106.09685): y = x W + s (dropout(x) A) B.
- DoRA (Liu et al., 2024, arXiv:2402.09353): y = (x W + s (dropout(x) A) B) m / |W + s A B|, the norm over the inputs
  and taken as a constant (section 4.3).
- IA3 (Liu et al., 2022, arXiv:2205.05638): y = l (x W + b), or y = (l x) W + b.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxlm.nn.dropout import dropout

Adapter = Mapping[str, jax.Array]
"""What stands beside a kernel [*inputs, *outputs], by suffix of its name (`SUFFIXES`)."""
SUFFIXES = ("lora_a", "lora_b", "dora_scale", "ia3_scale", "ia3_input_scale", "lora_key")
"""A [*inputs, r], B [r, *outputs], m [*outputs], l [*outputs] or [*inputs], and while training the dropout's key."""


def beside(module: nn.Module, name: str) -> Adapter:
    """Returns the adapter beside a module's kernel; empty where there is none."""
    names = {suffix: f"{name}_{suffix}" for suffix in SUFFIXES}
    return {
        suffix: module.get_variable("params", leaf)
        for suffix, leaf in names.items()
        if module.has_variable("params", leaf)
    }


def is_low_rank(adapter: Adapter) -> bool:
    """Whether it adds a product of two thin matrices."""
    return "lora_a" in adapter


def drop(x: jax.Array, adapter: Adapter, rate: float) -> jax.Array:
    """The inputs that the low-rank update sees: all of them, or some while training."""
    return dropout(x, rate, adapter["lora_key"]) if "lora_key" in adapter else x


def low_rank_update(adapter: Adapter, scale: float) -> jax.Array:
    """s A B, float32 [*inputs, *outputs]."""
    return scale * jnp.tensordot(adapter["lora_a"], adapter["lora_b"], 1)


def add_update(y: jax.Array, update: jax.Array, kernel: jax.Array, adapter: Adapter, scale: float) -> jax.Array:
    """Adds what A and B made of the inputs to y = x W; with DoRA, gives the sum its learned length.

    Args:
      y, update: [..., *outputs].
    """
    y = y + update * jnp.asarray(scale, update.dtype)
    if "dora_scale" not in adapter:
        return y
    whole = jax.lax.stop_gradient(kernel.astype(jnp.float32) + low_rank_update(adapter, scale))
    factor = adapter["dora_scale"] / output_norms(whole, adapter["dora_scale"].ndim)
    return y * _add_axes(factor, y).astype(y.dtype)


def output_norms(kernel: jax.Array, num_outputs: int) -> jax.Array:
    """Euclidean norm over the inputs, float32 [*outputs], `num_outputs` axes."""
    return jnp.sqrt(jnp.square(kernel.astype(jnp.float32)).sum(range(kernel.ndim - num_outputs)))


def scale_inputs(x: jax.Array, adapter: Adapter) -> jax.Array:
    """l x, where there is such an l."""
    return _scaled(x, adapter, "ia3_input_scale")


def scale_outputs(y: jax.Array, adapter: Adapter) -> jax.Array:
    """l y, where there is such an l."""
    return _scaled(y, adapter, "ia3_scale")


def merged(kernel: jax.Array, bias: jax.Array | None, adapter: Adapter, scale: float) -> tuple[jax.Array, ...]:
    """Returns the kernel, and the bias if there is one, that compute what kernel, bias and adapter do; float32."""
    kernel = kernel.astype(jnp.float32)
    if is_low_rank(adapter):
        kernel = kernel + low_rank_update(adapter, scale)
    if "dora_scale" in adapter:
        kernel = kernel * _add_axes(adapter["dora_scale"] / output_norms(kernel, adapter["dora_scale"].ndim), kernel)
    if "ia3_input_scale" in adapter:
        of_inputs = adapter["ia3_input_scale"]
        kernel = kernel * of_inputs.reshape(of_inputs.shape + (1,) * (kernel.ndim - of_inputs.ndim))
    kernel = _scaled(kernel, adapter, "ia3_scale")
    return (kernel,) if bias is None else (kernel, _scaled(bias, adapter, "ia3_scale"))


def _scaled(x: jax.Array, adapter: Adapter, suffix: str) -> jax.Array:
    return x * _add_axes(adapter[suffix], x).astype(x.dtype) if suffix in adapter else x


def _add_axes(x: jax.Array, like: jax.Array) -> jax.Array:
    """Adds leading axes of size one, without implicit rank promotion."""
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)
