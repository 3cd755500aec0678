"""Rotary position embedding (Su et al., 2021); on a TPU by a kernel, for heads that fill whole blocks of lanes.

Shape letters: B rows, T row length, N heads, H head_dim, W lanes of a block.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from jaxlm.nn.blocks import LANES, block_size, ways
from jaxlm.parallel.sharding import Rules


def plain_rope_frequencies(theta: float, head_dim: int) -> np.ndarray:
    """Radians per position of each pair of a head's dimensions, theta^(-2h/H), float32 [H / 2].

    Each operation rounds to float32, as where the published models were trained: at position 100,000 the last bit of a
    frequency is 0.006 radians. The power is that of float64, rounded.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    return np.float32(1) / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def apply_rope(
    x_BTNH: jax.Array, positions_BT: jax.Array, frequencies: np.ndarray | jax.Array, rules: Rules | None = None
) -> jax.Array:
    """Turns the pair (h, h + H/2) of each head's dimensions by position x frequency h.

    Args:
      frequencies: float32 [H/2], radians per position.
      rules: whose mesh x is split over; None: no device is a TPU.
    Returns:
      As x, in its dtype; the angles are computed in float32.
    """
    angles = positions_BT.astype(jnp.float32)[:, :, None] * jnp.asarray(frequencies, jnp.float32)[None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    if rules is not None and rules.platform == "tpu" and _fits(x_BTNH.shape, rules):
        return turn_on_each_device(x_BTNH, jnp.concatenate([cos, sin], -1), rules)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BTNH.dtype)


def _fits(shape_BTNH: tuple[int, ...], rules: Rules) -> bool:
    """True where each device has whole rows of whole blocks."""
    rows, length, heads, head_dim = shape_BTNH
    of_rows, of_length, of_heads = (ways(part, rules) for part in rules.spec(("batch", "length", "act_heads")))
    whole = rows % of_rows == 0 and length % (LANES * of_length) == 0 and heads % of_heads == 0
    return whole and LANES % head_dim == 0 and heads // of_heads * head_dim % LANES == 0


def turn_on_each_device(x_BTNH: jax.Array, angles_BTH: jax.Array, rules: Rules) -> jax.Array:
    """`apply_rope` by the kernel, on each device's rows, columns and heads; interpreted on other platforms than a TPU.

    Args:
      angles_BTH: of the pairs of each position first the cosines, then the sines, float32.
    """
    head_dim, interpret = x_BTNH.shape[3], rules.platform != "tpu"

    def turn(x_BTNH: jax.Array, angles_BTH: jax.Array) -> jax.Array:
        table_BTW = jnp.tile(angles_BTH, (1, 1, LANES // head_dim))
        x_BTD = x_BTNH.reshape(*x_BTNH.shape[:2], -1)
        turned: jax.Array = _turn(head_dim, interpret, x_BTD, table_BTW)
        return turned.reshape(x_BTNH.shape)

    if rules.mesh is not None:
        rows, length, heads = rules.spec(("batch", "length", "act_heads"))
        split = PartitionSpec(rows, length, heads, None)
        specs = (split, PartitionSpec(rows, length, None))
        turn = jax.shard_map(turn, mesh=rules.mesh, in_specs=specs, out_specs=split, check_vma=False)
    return turn(x_BTNH, angles_BTH)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _turn(head_dim: int, interpret: bool, x_BTD: jax.Array, table_BTW: jax.Array) -> jax.Array:
    return _call(head_dim, interpret, x_BTD, table_BTW, 1.0)


def _forward(head_dim: int, interpret: bool, x_BTD: jax.Array, table_BTW: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _call(head_dim, interpret, x_BTD, table_BTW, 1.0), table_BTW


def _backward(head_dim: int, interpret: bool, table_BTW: jax.Array, gradient: jax.Array) -> tuple[jax.Array, None]:
    """Turns the gradient back."""
    return _call(head_dim, interpret, gradient, table_BTW, -1.0), None


_turn.defvjp(_forward, _backward)


def _call(head_dim: int, interpret: bool, x_BTD: jax.Array, table_BTW: jax.Array, sign: float) -> jax.Array:
    rows, length, lanes = x_BTD.shape
    columns = block_size(length)
    of_x = pl.BlockSpec((None, columns, LANES), lambda b, i, n: (b, i, n))
    return pl.pallas_call(
        functools.partial(_turn_block, head_dim, sign),
        name="rotary",
        out_shape=jax.ShapeDtypeStruct(x_BTD.shape, x_BTD.dtype),
        grid=(rows, length // columns, lanes // LANES),  # the table's block stays while those of x pass by
        in_specs=[of_x, pl.BlockSpec((None, columns, LANES), lambda b, i, n: (b, i, 0))],
        out_specs=of_x,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel")),
        interpret=interpret,
    )(x_BTD, table_BTW)


def _turn_block(head_dim: int, sign: float, x, table, out):
    """One block [T, W]. Of each head's lanes the first half of `table` holds cosines, the second sines."""
    half, numbers, turns = head_dim // 2, x[...].astype(jnp.float32), table[...]
    first = jax.lax.broadcasted_iota(jnp.int32, (1, LANES), 1) % head_dim < half

    def partners(array: jax.Array) -> jax.Array:
        """Each lane's number of the other half of its head."""
        return jnp.where(first, pltpu.roll(array, LANES - half, 1), pltpu.roll(array, half, 1))

    others = partners(turns)
    cos, sin = jnp.where(first, turns, others), jnp.where(first, -others, turns)
    out[...] = (numbers * cos + partners(numbers) * (sin * sign)).astype(out.dtype)
