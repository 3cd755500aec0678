"""jaxlm: pretrain, fine-tune, evaluate and export language models in JAX.

The functions and classes of `__all__` are the Python API (docs/python.md). Each is imported when it is first asked for,
so that `import jaxlm` alone neither imports JAX nor takes time.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxlm import errors as errors
    from jaxlm.api.loaded import LoadedModel as LoadedModel
    from jaxlm.api.loaded import load as load
    from jaxlm.api.scoring import evaluate as evaluate
    from jaxlm.api.training import RunSummary as RunSummary
    from jaxlm.api.training import finetune as finetune
    from jaxlm.api.training import pretrain as pretrain

__version__ = "0.1.0"

_PLACES = {
    "LoadedModel": "jaxlm.api.loaded",
    "RunSummary": "jaxlm.api.training",
    "evaluate": "jaxlm.api.scoring",
    "finetune": "jaxlm.api.training",
    "load": "jaxlm.api.loaded",
    "pretrain": "jaxlm.api.training",
}
"""Each name of the API, and the module that defines it."""

__all__ = ["LoadedModel", "RunSummary", "__version__", "errors", "evaluate", "finetune", "load", "pretrain"]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("jaxlm.errors")
    if name not in _PLACES:
        where = f"; jaxlm.load(RUN) has {name}" if name in ("embed", "generate", "predict") else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{where}")
    value = globals()[name] = getattr(importlib.import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
