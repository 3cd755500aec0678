"""A backend of JAX that was asked for and is not there: one line instead of JAX's traceback."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pkgutil
import re
import traceback
from pathlib import Path

_ABSENT = re.compile(r"(?:Unable to initialize backend|Unknown backend:?) '?(?P<name>\w+)'?(?P<reason>.*)", re.DOTALL)


def explain_absent(error: RuntimeError | AssertionError) -> str | None:
    """Returns what to do about an error of a backend that cannot be used; None for other errors."""
    asked = os.environ.get("JAX_PLATFORMS")
    if isinstance(error, AssertionError):
        if not asked or not _in_jax_backends(error):
            return None
        name, reason = asked, "none of its devices is here"
    else:
        found = _ABSENT.match(str(error))
        if found is None:
            return None
        name = "gpu" if asked == "gpu" else found["name"]
        reason = " ".join(found["reason"].partition("(set JAX_PLATFORMS")[0].removeprefix(":").split())
    if len(reason) > 160:
        reason = f"{reason[:160]} ..."
    asked = f"JAX_PLATFORMS={asked}: " if asked else ""
    return (
        f"{asked}the backend {name} cannot be used here ({reason.rstrip('. ')}). Installed: "
        f"{', '.join(installed())}. Leave JAX_PLATFORMS unset to use what there is, or set it to cpu; TPUs need "
        "`pip install 'jaxlm[tpu]'`, NVIDIA GPUs `pip install 'jaxlm[cuda]'`"
    )


def _in_jax_backends(error: AssertionError) -> bool:
    """Whether JAX's own search for backends found none, which it says by an assertion, as for CUDA without a GPU."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == "xla_bridge.py"


def installed() -> list[str]:
    """Returns the backends whose packages are installed, whether or not their devices are here."""
    found = ["cpu"]
    try:
        plugins = importlib.import_module("jax_plugins").__path__  # a namespace package, absent without plugins
    except ImportError:
        plugins = []
    names = [module.name.removeprefix("xla_") for module in pkgutil.iter_modules(plugins)]
    found += sorted({re.sub(r"\d+$", "", name) for name in names})
    if importlib.util.find_spec("libtpu") is not None:
        found.append("tpu")
    return found
