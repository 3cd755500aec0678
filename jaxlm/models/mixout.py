"""Mixes pretrained weights into trained ones at random (Lee, Cho & Kang, 2020, "Mixout: Effective Regularization to
Finetune Large-scale Pretrained Language Models", arXiv:1909.11299): a dropout that falls back on what was pretrained,
where plain dropout of weights falls back on zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.models.base import flatten
from jaxlm.models.freezing import Frozen
from jaxlm.models.places import unflatten
from jaxlm.nn.layers import Key

PRETRAINED = "pretrained"
"""Entry of the frozen tree that holds the weights as they were."""
_MIXOUT = 0x6D69786F
"""Folded into a step's key, so that its draws are not those of dropout."""


@dataclass(frozen=True)
class MixoutSplit(Frozen):
    """A `freezing.Split` whose frozen tree also holds the pretrained weights of trained kernels.

    Attributes:
      kernels: names of the parameters that are mixed; those that are frozen whole are not.
      rate: probability p of a pretrained weight.
    """

    kernels: frozenset[str] = frozenset()
    rate: float = 0.0

    def split(self, params: Any) -> tuple[Any, Any]:
        """See `Split.split`; the pretrained weights are arrays of their own, since the trained ones are given up."""
        trained, frozen = super().split(params)
        kept = {name: _copy(leaf) for name, leaf in flatten(trained).items() if name in self.kernels}
        return trained, {**frozen, PRETRAINED: unflatten(kept)}

    def merge(self, trained: Any, frozen: Any, key: Key = None) -> Any:
        """See `Split.merge`. With a key, of a weight w and its pretrained value u: u with probability p, else
        (w - p u) / (1 - p), whose mean is w."""
        whole = super().merge(trained, {name: tree for name, tree in frozen.items() if name != PRETRAINED}, key)
        if key is None:
            return whole
        flat = flatten(whole)
        draws = jax.random.fold_in(key, _MIXOUT)
        for number, (name, before) in enumerate(sorted(flatten(frozen[PRETRAINED]).items())):
            back = jax.random.bernoulli(jax.random.fold_in(draws, number), self.rate, before.shape)
            flat[name] = jnp.where(back, before, (flat[name] - self.rate * before) / (1.0 - self.rate))
        return unflatten(flat)


def _copy(leaf: Any) -> Any:
    return jnp.copy(leaf) if isinstance(leaf, jax.Array) else leaf
