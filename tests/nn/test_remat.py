"""What the backward pass of a layer keeps and computes again."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import examples, inputs, pack, tiny, weights

from jaxlm.nn.attention import Mask, attend
from jaxlm.nn.layers import ComputeConfig
from jaxlm.nn.remat import recompute
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules

KEEPING = ["none", "dots", ("attention", "q", "k"), ("attention", "q"), ("attention",), "full"]
"""From what keeps all to what keeps nothing."""


def gradient_program(remat) -> str:
    """The traced gradient of a tiny Llama's output, before XLA."""
    model = tiny("llama", ComputeConfig(remat=remat))
    batch = jax.tree.map(jnp.asarray, inputs(pack([examples(3)], length=30, slots=3), model))
    return str(jax.make_jaxpr(jax.grad(lambda params: model.apply(params, batch).sum()))(weights(model)))


def test_names_say_which_products_are_computed_once():
    counts = [gradient_program(remat).count("dot_general") for remat in KEEPING]
    assert counts == sorted(set(counts)), dict(zip(KEEPING, counts, strict=True))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("meshed", [False, True])
def test_what_the_attention_kernels_backward_pass_reads_is_kept_by_name(rate, meshed, capsys):
    rules = Rules(make_mesh(fsdp=4, tensor=2, data=1)) if meshed else Rules()
    q = jnp.asarray(np.random.default_rng(0).normal(size=(4, 128, 2, 8)), jnp.float32)
    ids = jnp.ones((4, 128), jnp.int32)

    def kept(remat) -> list[str]:
        compute = ComputeConfig(attention="splash", rules=rules, remat=remat)

        def layer(q):
            key = jax.random.key(0) if rate else None
            return attend(q, q, q, Mask(ids, ids), compute, dropout_rate=rate, key=key)

        jax.ad_checkpoint.print_saved_residuals(recompute(layer, remat, rules, scanned=False), q)
        return [
            line
            for line in capsys.readouterr().out.splitlines()
            if not re.search("from (a constant|the argument)", line)
        ]

    assert kept("full") == kept(("q",)) == []
    assert len(kept(("attention",))) == len(kept("dots")) == 2  # the outputs, and the sums of their softmax
