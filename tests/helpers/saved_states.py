"""For tests: train states that are a function of their step, saved and compared."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from helpers.paths import REPOSITORY
from jaxtyping import PyTree

from jaxlm.training.checkpoint import Checkpointer

ROOT = REPOSITORY


def make_state(step: int, shape: tuple[int, ...] = (8, 16)) -> dict:
    """A train state that is a function of its step; every leaf differs from every other."""
    rng = np.random.default_rng(step)
    params = {
        "head": {
            "kernel": jnp.asarray(rng.standard_normal(shape, np.float32)),
            "bias": jnp.asarray(rng.standard_normal(shape[-1:]), jnp.bfloat16),
        }
    }
    moments = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype) if x.ndim else jnp.int32(step),
        optax.adamw(1e-3).init(params),
    )
    return {
        "params": params,
        "opt_state": moments,
        "rng": jax.random.key_data(jax.random.key(step)),
        "step": jnp.int32(step),
    }


def abstract(tree, sharding=None):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def checkpointer(directory: Path, keep: int = 1, metric: str | None = None, **options) -> Checkpointer:
    return Checkpointer(directory, keep=keep, metric=metric, **options)


def save_steps(directory: Path, *steps: int, keep: int = 5) -> None:
    with checkpointer(directory, keep) as saver:
        for step in steps:
            saver.save(step, make_state(step), {"step": step})


def keep_saving(directory: Path) -> None:
    """Saves steps, ranked by chance, until the process is killed."""
    with checkpointer(directory, metric="f1") as saver:
        for step in itertools.count((saver.latest_step() or 0) + 1):
            saver.save(step, make_state(step), {"step": step}, {"f1": step % 7 / 7})


def assert_restores(saver: Checkpointer, expected: int, step: int | None = None) -> None:
    found, state, extra = saver.restore(abstract(make_state(expected)), step)
    assert found == expected and extra == {"step": expected}
    assert tree_digest(state) == tree_digest(make_state(expected))


def tree_digest(tree: PyTree) -> str:
    """SHA-256 over paths, dtypes, shapes and bytes of all leaves: equal for bit-identical trees only.

    A leaf may be an array or a scalar, of any sharding that this process can read whole.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())
