"""Whether a checkpoint is what was saved: a sealed table of its leaves and of the SHA-256 of its files."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jaxlm.errors import UserError
from jaxlm.files import sha256

FILE = "manifest.json"


def write(folder: Path, content: dict[str, Any]) -> None:
    """Records the data files of a folder, beside `content`, a dict of JSON values."""
    text = json.dumps(content | {"files": _measure(folder)})
    (folder / FILE).write_text(json.dumps({"sha256": _text_digest(text), "content": text}))


def read(folder: Path) -> dict[str, Any]:
    """What `write` was given, with `files`: relative path -> [bytes, SHA-256].

    Raises:
      OSError: there is none.
      ValueError: it is damaged.
    """
    sealed = json.loads((folder / FILE).read_bytes())
    if not isinstance(sealed, dict) or _text_digest(str(sealed.get("content"))) != sealed.get("sha256"):
        raise ValueError(f"{FILE} is not what was written: its SHA-256 differs")
    return json.loads(sealed["content"])


def is_complete(folder: Path) -> bool:
    """Whether no file is missing; sizes and contents are `problem`'s concern, as is a damaged manifest."""
    try:
        return all((folder / name).is_file() for name in read(folder)["files"])
    except OSError:
        return False
    except ValueError:
        return True


def problem(folder: Path) -> str | None:
    """The first file that is not what was written, and why; None if all are."""
    try:
        expected = read(folder)["files"]
        found = _measure(folder)
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


def leaf_table(tree: PyTree) -> dict[str, str]:
    """Path -> dtype and shape of each leaf, for instance `params/head/bias` -> `float32[2]`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): f"{leaf.dtype}[{', '.join(map(str, leaf.shape))}]" for path, leaf in leaves}


def compare(folder: Path, stored: dict[str, str], expected: dict[str, str]) -> None:
    """Raises UserError, naming path, stored and expected, where two leaf tables differ."""
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


def _measure(folder: Path) -> dict[str, tuple[int, str]]:
    """Relative path -> (bytes, SHA-256) of each file in a sub-folder.

    Files at the top are left out: Orbax's notes, rewritten at the commit and not needed for a restore.
    """
    files = [path for path in sorted(folder.glob("*/**/*")) if path.is_file()]
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(sha256, files))
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_size, digest)
        for path, digest in zip(files, digests, strict=True)
    }


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
