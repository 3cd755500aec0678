"""Operations of the attention kernel, against those of XLA's attention."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxlm.cost.flops import kernel_flops, matmul_flops


def test_operations_of_the_kernel():
    """As XLA's attention has them, forward: q k^T and p v; backward the scores anew, four gradients, dp twice."""
    rows, length, heads, head_dim = 2, 256, 4, 128
    q = jax.ShapeDtypeStruct((rows, length, heads, head_dim), jnp.float32)
    products = matmul_flops(lambda q, k, v: jax.nn.dot_product_attention(q, k, v), q, q, q)
    ids = [("s32", (rows, length, 128)), ("s32", (rows, 8, length))]
    operands = [("s8", (1, 1, 1)), *[("bf16", (rows, heads, length, head_dim))] * 3, *ids]
    found = [kernel_flops(f"splash_mha_{part}_segmented", operands) for part in ("fwd", "dq", "dkv")]
    assert found == [products, 1.5 * products, 2 * products]
    assert kernel_flops("splash_mha_fwd_x", [*operands, ("s32", (length, 128))]) == products // 2
    narrow = [(dtype, (*shape[:-1], 64)) for dtype, shape in operands]
    assert kernel_flops("splash_mha_fwd_x", narrow) == products
    one = [(dtype, shape[1:]) for dtype, shape in operands]
    assert kernel_flops("splash_mha_fwd_x", one) == products // rows
    dropping = [("s32", (5,)), *operands[1:4], ("s32", (rows, 1, length)), ("s32", (rows, 1, length))]
    found = [kernel_flops(f"flash_mha_{part}", dropping) for part in ("fwd_whole", "bwd_whole", "fwd_causal")]
    assert found == [products, 2.5 * products, products / 2]
    beside = [("s32", (5,)), *[("bf16", (rows, length, heads * 64))] * 3]  # each of two heads in all lanes of a block
    assert kernel_flops("flash_mha_fwd_of_64_whole", beside) == products
    with pytest.raises(ValueError, match="kernel 'other'"):
        kernel_flops("other", operands)
