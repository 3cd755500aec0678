"""SHA-256 of what each process wrote of a checkpoint, computed by that process before Orbax commits the step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxlm.files import sha256

Digests = dict[str, tuple[int, str]]
"""Path relative to the step's folder -> (bytes, SHA-256)."""


class Handler(ocp.StandardCheckpointHandler):
    """Orbax's handler of pytrees; each process also leaves the digests of its files beside the item's folder."""

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any]:
        writing = await super().async_save(directory, *args, **kwargs) or []
        return [_Digesting(writing, Path(getattr(directory, "path", directory)), jax.process_index())]


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclass
class Save(ocp.args.StandardSave):
    """What `Handler` saves."""


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclass
class Restore(ocp.args.StandardRestore):
    """What `Handler` restores."""


@dataclass(frozen=True)
class _Digesting:
    """Waits until this process's files are written, then reads them once; Orbax calls this in the background."""

    writing: Sequence[Any]
    item: Path
    process: int

    def result(self, timeout: float | None = None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        for future in self.writing:
            future.result(None if deadline is None else max(0.0, deadline - time.monotonic()))
        files = [path for path in self.item.glob(f"ocdbt.process_{self.process}/**/*") if path.is_file()]
        found = digest(self.item, files)
        name = self.item.name.partition(ocp.utils.TMP_DIR_SUFFIX)[0]  # as the commit will call it
        note = {f"{name}/{path}": value for path, value in found.items()}
        _file_of(self.item.parent, self.process).write_text(json.dumps(note))

    def cancel(self) -> bool | None:
        for future in self.writing:
            future.cancel()
        return None


def digest(folder: Path, files: Sequence[Path]) -> Digests:
    """Reads files of a folder."""
    with ThreadPoolExecutor(4) as pool:
        hashes = list(pool.map(sha256, files))
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, found)
        for path, found in zip(files, hashes, strict=True)
    }


def collect(folder: Path) -> Digests:
    """Takes what all processes noted of a step that is being written; their notes are removed.

    Raises:
      OSError: a note is missing.
    """
    found: Digests = {}
    for process in range(jax.process_count()):
        note = _file_of(folder, process)
        found |= {name: (size, text) for name, (size, text) in json.loads(note.read_text()).items()}
        note.unlink()
    return found


def _file_of(folder: Path, process: int) -> Path:
    return folder / f"digests.{process}.json"
