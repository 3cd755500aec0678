"""Compiled programs kept on disk, so that the next command need not compile them again: JAX's compilation cache."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from pathlib import Path

import filelock
import jax
from jax.experimental.compilation_cache import compilation_cache

log = logging.getLogger("jaxlm")

LIMIT = 8 * 2**30
"""Bytes; beyond, what was not used for longest is removed."""
_LOCK_SECONDS = 5
_FOLDER = "jax_compilation_cache_dir"


def use_compile_cache(setting: str | None) -> None:
    """Lets JAX keep what takes it over a second to compile, and find it again.

    A cache that is set up already, by JAX_COMPILATION_CACHE_DIR for instance, stays. A folder that cannot be written
    costs a warning.

    Args:
      setting: `logging.compile_cache`: auto, a folder, or None.
    """
    if setting is None or getattr(jax.config, _FOLDER) is not None:
        return
    folder = _own_folder() if setting == "auto" else Path(setting)
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(folder)
    except (OSError, filelock.Timeout) as error:
        log.warning("logging.compile_cache: %s cannot be used (%s): programs are compiled anew; name another folder, "
                    "or null", folder, error)  # fmt: skip
        return
    jax.config.update("jax_compilation_cache_max_size", LIMIT)
    jax.config.update(_FOLDER, str(folder))
    compilation_cache.reset_cache()  # JAX looks for the folder once, when it first compiles


def _own_folder() -> Path | None:
    """The folder of this user, and on a CPU of this kind of CPU: a program for one may not run on another.

    None for a user without a home, as in some containers.
    """
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / "xla"
    except RuntimeError:
        return None
    return root / f"cpu-{_cpu_kind()}" if jax.default_backend() == "cpu" else root


def _cpu_kind() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [platform.processor()]
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join([platform.machine(), *kind]).encode()).hexdigest()[:8]


def _remove_unfinished(folder: Path) -> None:
    """Removes programs of processes that were killed while they wrote: JAX notes the time of use after the program, and
    would neither read nor replace them."""
    with filelock.FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):
        for program in folder.glob("*-cache"):
            if not program.with_name(program.name.removesuffix("-cache") + "-atime").exists():
                program.unlink(missing_ok=True)
