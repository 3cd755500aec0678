"""What of a layer is kept for the backward pass, and what is computed again there (`model.remat`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

from jaxlm.parallel.sharding import Rules

Remat = Literal["none", "full", "dots"] | tuple[str, ...]
"""What is computed again: nothing, all, all but products and attention, or all but what these names name."""
GATHERED = "gathered weights"
"""What `jax.checkpoint` calls the weights that fsdp splits, where they have been gathered."""
ATTENTION = "attention"
"""What it calls the outputs of attention, and what the kernel's backward pass reads beside them. The output of a dense
map has the name of its parameter."""


def recompute(fn: Callable[..., Any], remat: Remat, rules: Rules, *, scanned: bool) -> Callable[..., Any]:
    """Returns a layer whose backward pass computes again what `remat` says, and gathers split weights again.

    Args:
      scanned: the layer is the body of a scan. Outside one, XLA would merge the recomputation with the forward pass and
        so keep what it was to forget.
    """
    policies = jax.checkpoint_policies
    split = max(rules.size("fsdp"), rules.size("context")) > 1
    if remat == "none" and not split:
        return fn
    if remat == "none":
        policy = policies.save_anything_except_these_names(GATHERED)
    elif remat == "full":
        policy = None
    elif remat == "dots":
        kept = policies.save_only_these_names(ATTENTION)
        policy = policies.save_from_both_policies(policies.dots_with_no_batch_dims_saveable, kept)
    else:
        policy = policies.save_only_these_names(*remat)
    return jax.checkpoint(fn, policy=policy, prevent_cse=not scanned)
