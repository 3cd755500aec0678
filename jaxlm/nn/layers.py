"""Primitives that the families are written from: declared parameters, dense maps, activations.

Shape letters: B rows, T row length, S slots, D embed, N heads, H head_dim, F mlp, V vocab, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from flax.core import meta
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from jaxlm.nn import adapters, quantized
from jaxlm.nn.bias import add_bias
from jaxlm.nn.dropout import Key
from jaxlm.nn.products import product
from jaxlm.nn.remat import GATHERED, Remat
from jaxlm.parallel.sharding import Rules, constrain


@dataclass(frozen=True)
class ComputeConfig:
    """How a model is computed; never changes its parameter tree."""

    dtype: Any = jnp.float32
    attention: str = "auto"
    remat: Remat = "none"
    unroll: int = 1
    rules: Rules = Rules()
    flatten_products: bool = False
    """Dense maps multiply matrices of two axes: of arrays of more, XLA's CPU compiler transposes copies for the
    gradients' products."""
    half_products: bool = False
    """With `flatten_products`: dense maps multiply what is rounded to bfloat16 (`nn.products.half_product`)."""
    layer_drop: float = 0.0
    """How often a layer of a stack is skipped while training."""
    adapter_scale: float = 1.0
    """What a low-rank update beside a dense map is multiplied by (`nn.adapters`)."""
    adapter_dropout: float = 0.0
    """Share of the inputs that it does not see while training."""


class Kernel(nn.Partitioned):
    """Declares a parameter to be the weights of a dense map: an adapter may stand beside it."""

    contract: int = struct.field(default=1, pytree_node=False)
    """Axes, after `layers`, that are inputs; the rest are outputs."""


def param(
    module: nn.Module,
    name: str,
    init: Callable[..., jax.Array],
    shape: Sequence[int],
    axes: Sequence[str],
    contract: int | None = None,
) -> jax.Array:
    """Declares a float32 parameter with one logical axis name beside each dimension.

    Args:
      contract: of a dense map's weights, how many axes are inputs.
    """
    if len(shape) != len(axes):
        raise ValueError(f"parameter {name}: shape {tuple(shape)} and axes {tuple(axes)} differ in rank")

    def boxed(*args: Any) -> nn.Partitioned:
        value, names = init(*args), tuple(axes)
        return nn.Partitioned(value, names) if contract is None else Kernel(value, names, contract=contract)

    value = module.param(name, boxed, tuple(shape), jnp.float32, unbox=True)
    # Frozen parameters may be stored in half precision, and kernels in 8 bits, which `_affine` multiplies by.
    return value if value.dtype == jnp.int8 else value.astype(jnp.float32)


def normal(std: float) -> Callable[..., jax.Array]:
    """Normal initializer with mean 0."""
    return nn.initializers.normal(std)


def add_leading_axes(x: jax.Array, rank: int) -> jax.Array:
    """Adds leading axes of size one up to `rank`: biases meet activations without implicit rank promotion."""
    return x.reshape((1,) * (rank - x.ndim) + x.shape)


def dense(
    module: nn.Module,
    name: str,
    x: jax.Array,
    sizes: Sequence[int],
    axes: Sequence[str],
    *,
    contract: int = 1,
    init: Callable[..., jax.Array] | None = None,
    bias: bool = True,
    heads_apart: bool = False,
) -> jax.Array:
    """Affine map of the last `contract` axes of x: parameter `name` of shape `sizes`, `name_bias` of its output axes.

    What fsdp splits is gathered for it, and not kept for the backward pass (`run_stack`).

    Args:
      module: its `compute` says in which dtype and how to multiply.
      x: [..., sizes[:contract]].
      sizes, axes: kernel shape, inputs then outputs, and its logical axes.
      init: absent: normal, of the module's `config.init_std`.
      heads_apart: of attention with relative positions: its products, by XLA, want heads in an axis of their own, where
        kernels on a TPU read them side by side.
    Returns:
      [..., sizes[contract:]] in the compute dtype.
    """
    kernel = param(module, name, _init_of(module, init), sizes, axes, contract)
    b = None
    if bias:
        b = param(module, f"{name}_bias", nn.initializers.zeros, sizes[contract:], axes[contract:])
    weights = _Weights(kernel, b, adapters.beside(module, name), quantized.scale_beside(module, name), heads_apart)
    return _affine(cast(Any, module).compute, x, weights, axes, contract, name)


def dense_again(
    module: nn.Module, name: str, x: jax.Array, axes: Sequence[str], *, heads_apart: bool = False
) -> jax.Array:
    """Maps another x [..., inputs] by the parameters of a `dense` that this module has declared before."""
    kernel = meta.unbox(module.get_variable("params", name))
    bias = meta.unbox(module.get_variable("params", f"{name}_bias"))  # None where there is none
    weights = _Weights(kernel, bias, adapters.beside(module, name), quantized.scale_beside(module, name), heads_apart)
    return _affine(cast(Any, module).compute, x, weights, axes, 1, name)


class _Weights(NamedTuple):
    """Of a dense map: its kernel, its bias or None, the adapter beside it, mostly empty, an int8 kernel's scale, and
    whether heads keep an axis of their own."""

    kernel: jax.Array
    bias: jax.Array | None
    adapter: adapters.Adapter
    scale: jax.Array | None = None
    heads_apart: bool = False


def _affine(
    compute: ComputeConfig, x: jax.Array, weights: _Weights, axes: Sequence[str], contract: int, name: str
) -> jax.Array:
    side_by_side = compute.rules.platform == "tpu" and "head_dim" in axes and not weights.heads_apart
    if side_by_side and weights.scale is None and not weights.adapter:
        return _affine_of_heads(compute, x, weights, axes, contract, name)

    def multiply(x: jax.Array, kernel: jax.Array, axes: Sequence[str], contract: int) -> jax.Array:
        kernel = _gather(kernel, axes, compute)
        return product(x, kernel, contract, flatten=compute.flatten_products, half=compute.half_products)

    x, adapter = adapters.scale_inputs(x.astype(compute.dtype), weights.adapter), weights.adapter
    y = multiply(x, weights.kernel, axes, contract)
    kernel = weights.kernel
    if weights.scale is not None:
        y = y * add_leading_axes(weights.scale, y.ndim).astype(y.dtype)
        kernel = quantized.dequantize(kernel, weights.scale, 0, contract)
    if adapters.is_low_rank(adapter):
        hidden = adapters.drop(x, adapter, compute.adapter_dropout)
        hidden = multiply(hidden, adapter["lora_a"], (*axes[:contract], "rank"), contract)
        update = multiply(hidden, adapter["lora_b"], ("rank", *axes[contract:]), 1)
        y = adapters.add_update(y, update, kernel, adapter, compute.adapter_scale)
    if weights.bias is not None:
        y = add_bias(y, add_leading_axes(weights.bias, y.ndim), _gathered(axes[contract:]), compute.rules)
    return checkpoint_name(adapters.scale_outputs(y, adapter), name)


def _affine_of_heads(
    compute: ComputeConfig, x: jax.Array, weights: _Weights, axes: Sequence[str], contract: int, name: str
) -> jax.Array:
    """`_affine` with the dimensions of all heads in one axis: a TPU pads an axis of fewer than 128 numbers."""
    place = list(axes).index("head_dim")
    merged = (*axes[: place - 1], axes[place - 1], *axes[place + 1 :])

    def merge(array: jax.Array, at: int) -> jax.Array:
        return array.reshape(*array.shape[: at - 1], -1, *array.shape[at + 1 :])

    kernel = _gather(weights.kernel, axes, compute)
    outputs = kernel.shape[contract:]
    reads = place < contract
    x, contract = x.astype(compute.dtype), contract - reads
    y = product(merge(x, x.ndim - 1) if reads else x, merge(kernel, place), contract, flatten=False, half=False)
    if weights.bias is not None:
        bias = weights.bias if reads else merge(weights.bias, weights.bias.ndim - 1)
        y = add_bias(y, add_leading_axes(bias, y.ndim), _gathered(merged[contract:]), compute.rules)
    y = checkpoint_name(y, name)
    return y if reads else y.reshape(*y.shape[: y.ndim - len(outputs) + 1], *outputs)


def _gather(kernel: jax.Array, axes: Sequence[str], compute: ComputeConfig) -> jax.Array:
    """Returns a kernel as it is multiplied by: whole where fsdp splits it, in the compute dtype."""
    # Else the TPU compiler multiplies by the parts of other devices in turn (docs/design.md), where each adds into all
    # of the product once more.
    if kernel.dtype == jnp.int8:
        kernel = constrain(kernel, _gathered(axes), compute.rules).astype(compute.dtype)  # exact, in bfloat16 too
    else:
        kernel = constrain(kernel.astype(compute.dtype), _gathered(axes), compute.rules)
    return checkpoint_name(kernel, GATHERED)


def _gathered(axes: Sequence[str]) -> tuple[str, ...]:
    """The axes of weights that fsdp splits along `embed`, where they have been gathered."""
    return tuple("act_embed" if axis == "embed" else axis for axis in axes)


def _init_of(module: nn.Module, init: Callable[..., jax.Array] | None) -> Callable[..., jax.Array]:
    return normal(cast(Any, module).config.init_std) if init is None else init


def embedding_table(module: nn.Module, name: str, num: int, embed_dim: int, axis: str) -> Float[Array, "X D"]:
    """Declares a float32 table [num, embed_dim] with the logical axes (axis, "embed"), of `config.init_std`."""
    return param(module, name, _init_of(module, None), (num, embed_dim), (axis, "embed"))


def embed(module: nn.Module, name: str, ids: jax.Array, num: int, embed_dim: int, axis: str) -> jax.Array:
    """Looks ids [B, T] up in a table of its own (`embedding_table`): float32 [B, T, embed_dim]."""
    return embedding_lookup(
        embedding_table(module, name, num, embed_dim, axis), ids, cast(Any, module).compute.rules, axis
    )


def embedding_lookup(table: jax.Array, ids: jax.Array, rules: Rules, axis: str = "vocab") -> jax.Array:
    """Returns the rows of a table [num, D], whose first logical axis is `axis`, for ids [B, T]: [B, T, D].

    A table split along D is gathered first, as a layer's weights are. Of a table split by rows, each device looks up
    the rows that it holds, and the devices add up.
    """
    rows = jnp.take(constrain(table, (axis, None), rules), ids, axis=0)
    return constrain(rows, ("batch", "length", "act_embed"), rules)


def shard_heads(q: jax.Array, k: jax.Array, v: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shards queries, keys and values [B, T, N, H] for attention: heads over `tensor`, queries over `context`. The keys
    and values of a row are gathered over `context`."""
    q, k, v = (constrain(x, ("batch", "length", "act_heads", "head_dim"), rules) for x in (q, k, v))
    if rules.size("context") > 1:  # computed in parts first: gathered are these few heads, not the states
        k, v = (constrain(x, ("batch", "kv_length", "act_heads", "head_dim"), rules) for x in (k, v))
    return q, k, v


def take_columns(x: jax.Array, columns: jax.Array | None, axis: int = 1) -> jax.Array:
    """Returns each row's entries of x along `axis` at its `columns` [B, S]; x itself where None."""
    if columns is None:
        return x
    shape = [columns.shape[0], *(1,) * (x.ndim - 1)]
    shape[axis] = columns.shape[1]
    return jnp.take_along_axis(x, columns.reshape(shape), axis=axis)


def split_key(key: Key, num: int) -> Sequence[Key]:
    """Splits a key; None stays None."""
    return (None,) * num if key is None else tuple(jax.random.split(key, num))


def activation(name: str) -> Callable[[jax.Array], jax.Array]:
    """Returns the activation of an HF `hidden_act` name; KeyError for an unknown one (see `ACTIVATIONS`)."""
    return ACTIVATIONS[name]


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x) by erf, which XLA's CPU backend computes more than twice as fast as `jax.nn.gelu`'s erfc."""
    return x * _normal_cdf(x)


@_gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Phi(x) + x phi(x) is all that the backward pass keeps."""
    (x,), (dx,) = primals, tangents
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * jnp.square(x)) * np.asarray((2 * math.pi) ** -0.5, x.dtype)
    return x * cdf, dx * (cdf + x * density)


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 + 0.5 * jax.lax.erf(x * np.asarray(2**-0.5, x.dtype))


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": _gelu,
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_pytorch_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
