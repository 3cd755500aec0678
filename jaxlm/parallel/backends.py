"""A backend of JAX that was asked for and is not there: one line instead of JAX's traceback."""

from __future__ import annotations

import os
import re

_ABSENT = re.compile(r"Unable to initialize backend '(?P<name>\w+)': (?P<reason>.*)", re.DOTALL)


def explain_absent(error: RuntimeError) -> str | None:
    """Returns what to do about an error of a backend that cannot be used; None for other errors."""
    found = _ABSENT.match(str(error))
    if found is None:
        return None
    reason = " ".join(found["reason"].partition("(set JAX_PLATFORMS")[0].split())
    if len(reason) > 160:
        reason = f"{reason[:160]} ..."
    asked = os.environ.get("JAX_PLATFORMS")
    asked = f"JAX_PLATFORMS={asked}: " if asked else ""
    return (
        f"{asked}the backend {found['name']} cannot be used here ({reason.rstrip('. ')}). Leave JAX_PLATFORMS unset to "
        "use what there is, or set it to cpu; TPUs need the extra `tpu` and NVIDIA GPUs the extra `cuda` of jaxlm"
    )
