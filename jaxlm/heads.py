"""Task heads: from a trunk's states to float32 outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxlm.layers import Compute, Key, activation, dense, dropout, normal, split


class PooledClassifier(nn.Module):
    """[dropout] dense, activation, dropout, dense over one state per example.

    In HF's terms: BERT's pooler and classifier, RoBERTa's and ELECTRA's classification head, DistilBERT's
    pre_classifier and classifier.
    """

    num_outputs: int
    activation: str
    dropout: float
    dropout_before: bool
    init_std: float
    compute: Compute

    @nn.compact
    def __call__(self, x_RSD: Float[Array, "R S D"], key: Key = None) -> Float[Array, "R S C"]:
        embed_dim = x_RSD.shape[-1]
        before, after = split(key, 2)
        init = normal(self.init_std)
        x = dropout(x_RSD, self.dropout, before) if self.dropout_before else x_RSD
        x = dense(self, "dense", x, (embed_dim, embed_dim), ("embed", "embed_in"), init=init, dtype=self.compute.dtype)
        x = dropout(activation(self.activation)(x), self.dropout, after)
        outputs = dense(
            self, "out", x, (embed_dim, self.num_outputs), ("embed", "classes"), init=init, dtype=self.compute.dtype
        )
        return outputs.astype(jnp.float32)


def pooled_classifier(activation: str, *, dropout_before: bool) -> Callable[[Any, Compute, int], nn.Module]:
    """Returns a `Family.heads` entry; dropout at the config's `classifier_dropout`, else at its `dropout`."""

    def build(config: Any, compute: Compute, num_outputs: int) -> nn.Module:
        rate = config.dropout if config.classifier_dropout is None else config.classifier_dropout
        return PooledClassifier(num_outputs, activation, rate, dropout_before, config.init_std, compute)

    return build
