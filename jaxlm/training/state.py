"""The training state: step, trained and frozen parameters, optimizer state and random key, and where each lies."""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.errors import UserError
from jaxlm.parallel.sharding import Rules

HOST_MEMORY = "pinned_host"
"""Memory of the host that a device reads and writes directly."""


NO_PARAMS: dict[str, Any] = {}
"""The frozen parameters of a run that trains all."""


class TrainState(NamedTuple):
    """What a train step takes and returns. Shardings or ShapeDtypeStructs may stand for the arrays."""

    step: Any
    """int32 [], optimizer steps done."""
    params: Any
    """Pytree of the trained parameters."""
    opt_state: Any
    """State of the optimizer, of `params` only."""
    key: Any
    """Key that every step's dropout key is folded from."""
    frozen: Any = NO_PARAMS
    """Pytree of parameters that are read, but neither differentiated nor updated nor saved in checkpoints: the weights
    under an adapter, for instance."""


def fingerprint(params: Any) -> str:
    """Returns a short text that tells frozen parameters apart, whatever the mesh; "" of none.

    Of each array the sum of its bits, taken as integers.
    """
    leaves = jax.tree.leaves(params)
    if not leaves:
        return ""
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    sums = jax.jit(
        lambda xs: [
            jnp.sum(jax.lax.bitcast_convert_type(x, bits[x.dtype.itemsize]).astype(jnp.uint32), dtype=jnp.uint32)
            for x in xs
        ]
    )(leaves)
    return hashlib.sha256(" ".join(str(int(value)) for value in jax.device_get(sums)).encode()).hexdigest()[:16]


def saved_part(state: TrainState) -> dict[str, Any]:
    """Returns what a checkpoint holds of a state, as keyword arguments of `TrainState`: all fields but `frozen`."""
    fields = state._asdict()
    del fields["frozen"]
    return fields


def init_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    rules: Rules,
    *,
    frozen: Any = NO_PARAMS,
    offload: bool = False,
) -> TrainState:
    """Returns the state before the first step; optimizer moments take their parameters' shardings."""
    shardings = state_shardings(params, optimizer, rules, frozen=frozen, offload=offload)
    opt_state = jax.jit(optimizer.init, out_shardings=shardings and shardings.opt_state)(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, opt_state, key, frozen)
    if shardings is None:
        return state
    # Through jit, which knows devices of other processes, too.
    place = jax.jit(lambda step, key: (step, key), out_shardings=(shardings.step, shardings.key))
    step, key = place(state.step, key)
    return state._replace(step=step, key=key)


def state_shardings(
    params: Any,
    optimizer: optax.GradientTransformation,
    rules: Rules,
    *,
    frozen: Any = NO_PARAMS,
    offload: bool = False,
) -> TrainState | None:
    """Returns the sharding of every leaf of the state, or None without a mesh.

    A leaf of the optimizer's state belongs to the parameter whose path is the end of the leaf's own path, and is split
    like that parameter; dimensions of size one, which the optimizer has averaged over, are not split.

    Args:
      params, frozen: arrays or ShapeDtypeStructs that carry their shardings.
      offload: the optimizer's arrays lie in host memory.
    """
    mesh = rules.mesh
    if mesh is None:
        return None
    replicated = NamedSharding(mesh, PartitionSpec())
    by_path = dict(jax.tree_util.tree_leaves_with_path(params))

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        param = next((by_path[path[i:]] for i in range(len(path)) if path[i:] in by_path), None)
        if param is None:
            return replicated
        if len(leaf.shape) != len(param.shape):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(f"optimizer state {name}: shape {leaf.shape} for a parameter of shape {param.shape}")
        spec = (*param.sharding.spec, *[None] * len(leaf.shape))[: len(leaf.shape)]
        kept = [part if leaf.shape[dim] == param.shape[dim] else None for dim, part in enumerate(spec)]
        sharding = NamedSharding(mesh, PartitionSpec(*kept))
        return sharding.with_memory_kind(HOST_MEMORY) if offload else sharding

    opt_state = jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
    trained, kept = (jax.tree.map(lambda p: p.sharding, tree) for tree in (params, frozen))
    return TrainState(replicated, trained, opt_state, replicated, kept)


def abstract_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    rules: Rules,
    *,
    frozen: Any = NO_PARAMS,
    offload: bool = False,
) -> TrainState:
    """Returns the state as ShapeDtypeStructs with shardings, for restoring and ahead-of-time compilation."""
    shapes, kept = (jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), tree) for tree in (params, frozen))
    state = TrainState(
        jax.ShapeDtypeStruct((), jnp.int32),
        shapes,
        jax.eval_shape(optimizer.init, shapes),
        jax.ShapeDtypeStruct(key.shape, key.dtype),
        kept,
    )
    shardings = state_shardings(params, optimizer, rules, frozen=frozen, offload=offload)
    if shardings is None:
        return state
    return jax.tree.map(lambda s, sh: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sh), state, shardings)


def offloaded(optimizer: optax.GradientTransformation, params: Any, rules: Rules) -> optax.GradientTransformation:
    """Returns an optimizer whose state lies in host memory: each update fetches it and puts it back.

    Raises:
      UserError: the devices cannot reach such memory.
    """
    if rules.mesh is None:
        raise ValueError("an offloaded state needs a mesh")
    device = rules.mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST_MEMORY not in kinds:
        raise UserError(
            f"optimizer.offload: {device.device_kind} devices have no {HOST_MEMORY} memory (they have "
            f"{', '.join(kinds)}); set it to false, or use optimizer.moment_dtype=bfloat16 or optimizer.name=adafactor"
        )
    on_device, on_host = (
        cast(TrainState, state_shardings(params, optimizer, rules, offload=offload)).opt_state
        for offload in (False, True)
    )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(updates, jax.device_put(state, on_device), params)
        return updates, jax.device_put(state, on_host)

    return optax.GradientTransformation(optimizer.init, update)


def bytes_on_device(tree: Any) -> int:
    """Bytes of arrays, or ShapeDtypeStructs with shardings, in the memory of one device; scalars are left out."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim and leaf.sharding.memory_kind != HOST_MEMORY]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)
