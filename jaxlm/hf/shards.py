"""Writing safetensors: one file, or several with an index where one would be too large."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jaxlm.files import atomic_write

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARDS = "model-*-of-*.safetensors"


def write_tensors(
    directory: Path, sizes: Mapping[str, int], tensors: Iterable[tuple[str, np.ndarray]], shard_bytes: int
) -> None:
    """Writes tensors as they come, one file's worth in memory at a time, then removes files of an earlier export.

    Args:
      sizes: key -> bytes, of all tensors, in the order in which they come.
      shard_bytes: most bytes of a file, unless one tensor has more.
    """
    files = _divide(sizes, shard_bytes)
    num = len(files)
    names = [WEIGHTS] if num == 1 else [f"model-{i:05d}-of-{num:05d}.safetensors" for i in range(1, num + 1)]
    coming = iter(tensors)
    with contextlib.ExitStack() as replaced_together:
        for name, keys in zip(names, files, strict=True):
            held = dict(next(coming) for _ in keys)
            assert list(held) == keys
            temporary = replaced_together.enter_context(atomic_write(directory / name))
            save_tensors(held, temporary)
            del held
    if len(names) > 1:
        weight_map = {key: name for name, keys in zip(names, files, strict=True) for key in keys}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        with atomic_write(directory / INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        names.append(INDEX)
    for path in [directory / WEIGHTS, directory / INDEX, *directory.glob(SHARDS)]:
        if path.name not in names:
            path.unlink(missing_ok=True)


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes one safetensors file, which others may read as the umask says: safetensors would leave it to its owner."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def _divide(sizes: Mapping[str, int], most: int) -> list[list[str]]:
    files: list[list[str]] = [[]]
    held = 0
    for key, size in sizes.items():
        if files[-1] and held + size > most:
            files.append([])
            held = 0
        files[-1].append(key)
        held += size
    return files
