"""Weights of dense maps held in 8 bits: whole numbers, and for each output the number that one stands for.

W is about q s, s = max |W| / 127 over the inputs of an output, q = round(W / s): symmetric quantization by output
channels, as in Dettmers et al., "LLM.int8()" (2022, arXiv:2208.07339), without its outliers. A quantized kernel `q` has
its scale beside it in the parameter tree: `q_int8_scale`. Since s belongs to an output, x W = (x q) s.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn

SCALE = "int8_scale"
"""Suffix of the name of a scale, float32 [*outputs]."""
_MOST = 127.0


def quantize(kernel: jax.Array, num_stacks: int, contract: int) -> tuple[jax.Array, jax.Array]:
    """Returns int8 of the kernel's shape [*stacks, *inputs, *outputs], and float32 [*stacks, *outputs].

    Args:
      contract: how many axes are inputs.
    """
    inputs = tuple(range(num_stacks, num_stacks + contract))
    kernel = kernel.astype(jnp.float32)
    scale = jnp.abs(kernel).max(inputs, keepdims=True) / _MOST
    integers = jnp.round(kernel / jnp.where(scale == 0, 1.0, scale)).astype(jnp.int8)
    return integers, scale.squeeze(inputs)


def dequantize(kernel: jax.Array, scale: jax.Array, num_stacks: int, contract: int) -> jax.Array:
    """Returns the float32 kernel that `quantize` made these of, but for the rounding."""
    inputs = tuple(range(num_stacks, num_stacks + contract))
    return kernel.astype(jnp.float32) * jnp.expand_dims(scale, inputs)


def scale_beside(module: nn.Module, name: str) -> jax.Array | None:
    """Returns the scale of a module's kernel; None of one that is not quantized."""
    leaf = f"{name}_{SCALE}"
    return module.get_variable("params", leaf) if module.has_variable("params", leaf) else None
