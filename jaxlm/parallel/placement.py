"""From the rows that each process builds to arrays that lie on the mesh, and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxlm.fields import EXAMPLES, Batch, Field
from jaxlm.parallel import processes
from jaxlm.parallel.mesh import is_absent
from jaxlm.parallel.sharding import Rules, batch_shardings
from jaxlm.parallel.share import Share


def local_share(rules: Rules, micro_batches: int = 1) -> Share:
    """The rows of a global batch that this process builds: those that its devices hold."""
    return Share(_shards(rules), rules.num_batch_shards, micro_batches)


def device_arrays(batch: Batch) -> Batch:
    """The arrays of a batch that the device reads."""
    return {name: value for name, value in batch.items() if name != EXAMPLES}


def micro_batches(batch: Batch, number: int) -> Batch:
    """The arrays [B, ...] that the device reads as [number, B / number, ...]."""
    return {name: value.reshape(number, -1, *value.shape[1:]) for name, value in device_arrays(batch).items()}


def shard_batch(batch: Batch, rules: Rules, fields: Iterable[Field] = (), *, leading: int = 0) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch on the mesh.

    Args:
      batch: as `device_arrays` returns it.
      fields: the task's.
      leading: unsplit axes before that of the rows.
    """
    if rules.mesh is None:
        return {name: jnp.asarray(value) for name, value in batch.items()}
    shardings = batch_shardings(batch, rules, fields, leading=leading)
    return {name: _place(value, shardings[name], leading, rules) for name, value in batch.items()}


def gather_rows(array: Any, rules: Rules) -> np.ndarray:
    """All rows of an array on the host, of which this process has built its own; in the order of the global batch."""
    if not processes.is_multiprocess() or rules.mesh is None:
        return np.asarray(array)
    return processes.to_host(_place(np.asarray(array), batch_shardings({"": array}, rules)[""], 0, rules))


def sum_over_processes(counts: Mapping[str, int], rules: Rules) -> dict[str, int]:
    """Sums over all processes of what each counted in its rows; all processes have to call it."""
    answers = processes.all_gather_json([dict(counts), len(_shards(rules))])
    copies = sum(held for _, held in answers) // rules.num_batch_shards  # processes may hold parts of the same rows
    return {name: sum(each[name] for each, _ in answers) // copies for name in counts}


@functools.lru_cache(maxsize=64)
def _shards(rules: Rules) -> tuple[int, ...]:
    if rules.mesh is None:
        return (0,)
    if is_absent(rules.mesh):  # nobody's: JAX counts those of a topology's first host as this process's own
        return tuple(range(rules.num_batch_shards))
    places = rules.sharding(("batch",)).addressable_devices_indices_map((rules.num_batch_shards,))
    return tuple(sorted({(index[0].start or 0) if index else 0 for index in places.values()}))


def _place(value: np.ndarray, sharding: NamedSharding, axis: int, rules: Rules) -> jax.Array:
    """A global array of which `value` holds this process's rows along `axis`, and all of the other axes."""
    shards, of = _shards(rules), rules.num_batch_shards
    size = value.shape[axis] // len(shards)
    shape = (*value.shape[:axis], size * of, *value.shape[axis + 1 :])
    if len(shards) == of:
        return jax.make_array_from_callback(shape, sharding, lambda index: value[index])

    def part(index: Any) -> np.ndarray:
        rows = index[axis]
        shard, offset = divmod(rows.start or 0, size)
        here = shards.index(shard) * size + offset
        return value[(*index[:axis], slice(here, here + rows.stop - (rows.start or 0)), *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, sharding, part)
