"""Checkpoint integrity: a manifest of tree leaves and file hashes, itself protected by a hash."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import jax

from jaxlm.errors import UserError
from jaxlm.training import digests

FILE = "manifest.json"


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes the manifest of a folder: `content`, a dict of JSON values, and the size and hash of each data file.

    Files that the processes have digested as they wrote them (`digests`) are not read again.
    """
    known = digests.collect(folder)
    rest = [path for path in _files(folder) if path.relative_to(folder).as_posix() not in known]
    text = json.dumps(content | {"files": known | digests.digest(folder, rest)})
    (folder / FILE).write_text(json.dumps({"sha256": _text_digest(text), "content": text}))


def read(folder: Path) -> dict[str, Any]:
    """Returns the content given to `write`, and under `files`: relative path -> [bytes, SHA-256].

    Raises:
      OSError: there is none.
      ValueError: it is damaged.
    """
    sealed = json.loads((folder / FILE).read_bytes())
    if not isinstance(sealed, dict) or _text_digest(str(sealed.get("content"))) != sealed.get("sha256"):
        raise ValueError(f"{FILE} is not what was written: its SHA-256 differs")
    return json.loads(sealed["content"])


def is_complete(folder: Path) -> bool:
    """Returns whether no listed file is missing; `problem` finds damaged files, and a damaged manifest."""
    try:
        return all((folder / name).is_file() for name in read(folder)["files"])
    except OSError:
        return False
    except ValueError:
        return True


def is_damaged(folder: Path) -> bool:
    """Returns whether the manifest itself is not what was written."""
    try:
        read(folder)
    except (OSError, ValueError):
        return True
    return False


def problem(folder: Path) -> str | None:
    """Returns the first file that is not what was written, and why; None if all are."""
    try:
        expected = read(folder)["files"]
        found = digests.digest(folder, _files(folder))
    except (OSError, ValueError) as error:
        return f"{FILE} or a file that it lists cannot be read: {error}"
    for name, (size, digest) in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name][0] != size:
            return f"{name} has {found[name][0]:,} bytes instead of {size:,}"
        if found[name][1] != digest:
            return f"{name} is not what was written: its SHA-256 differs"
    return None


def leaf_table(tree: Any) -> dict[str, str]:
    """Returns path -> dtype and shape of each leaf, for instance `params/head/bias` -> `float32[2]`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]" for path, leaf in leaves}


def compare(folder: Path, stored: dict[str, str], expected: dict[str, str]) -> None:
    """Compares two leaf tables.

    Raises:
      UserError: they differ; names path, stored and expected leaf.
    """
    paths = [path for path in stored | expected if stored.get(path) != expected.get(path)]
    if not paths:
        return
    nothing = "nothing"
    lines = [f"{path}: stored {stored.get(path, nothing)}, expected {expected.get(path, nothing)}" for path in paths]
    if len(lines) > 5:
        lines[5:] = [f"and {len(lines) - 5} more"]
    raise UserError(
        "\n  ".join([f"{folder}: the checkpoint does not fit the model and optimizer of this config:", *lines])
        + "\nRestore the settings it was saved with, or start over with train.restart=true"
    )


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _files(folder: Path) -> list[Path]:
    """The files in sub-folders.

    Files at the top are left out: Orbax rewrites them at the commit, and a restore does not need them.
    """
    return [path for path in sorted(folder.glob("*/**/*")) if path.is_file()]


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
