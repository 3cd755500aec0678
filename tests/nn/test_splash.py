"""The TPU's attention kernels, interpreted on CPU devices, against XLA's attention: values and gradients."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.errors import UserError
from jaxlm.nn import flash
from jaxlm.nn.attention import Mask, attend, decoder_mask, empty_cache
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules

ROWS = 4


def rules(kind: str) -> Rules:
    """On eight devices: rows over four and heads over two; or rows, queries and heads each over two."""
    if kind == "none":
        return Rules()
    mesh = make_mesh(fsdp=4, tensor=2, data=1) if kind == "heads" else make_mesh(data=2, context=2, tensor=2)
    return Rules(mesh)


def segments(length: int, seed: int = 0) -> np.ndarray:
    """Rows of three segments and padding, of one segment and none, of padding alone, and of many short segments."""
    rng = np.random.default_rng(seed)
    first, second = np.sort(rng.choice(np.arange(2, length - 2), 2, replace=False))
    columns = np.arange(length)
    rows = [
        np.where(columns < length - 9, 1 + (columns >= first) + (columns >= second), 0),
        np.ones(length),
        np.zeros(length),
        1 + columns // 7,
    ]
    return np.stack(rows).astype(np.int32)


CASES = {
    # name: (query length, key length, N, K, H, causal, window)
    "both directions": (300, 300, 2, 2, 8, False, None),
    "causal": (384, 384, 4, 2, 24, True, None),
    "window": (384, 384, 2, 2, 64, True, 40),
    "wide window": (256, 256, 6, 2, 130, True, 200),
    "local": (300, 300, 2, 2, 8, False, 40),
    "other keys": (260, 200, 2, 2, 16, False, None),
    "side by side": (300, 300, 4, 4, 64, False, None),
    "four side by side": (260, 200, 8, 8, 32, False, None),
    "causal side by side": (384, 384, 4, 4, 64, True, 200),
    "groups side by side": (384, 384, 8, 2, 64, True, None),
    "wide groups side by side": (256, 256, 4, 2, 128, True, None),
    "groups of four side by side": (260, 260, 32, 8, 32, False, None),
}


MESHED = [("causal", "heads"), ("causal", "queries"), ("local", "queries"), ("other keys", "queries"),
          ("side by side", "heads"), ("causal side by side", "queries")]  # fmt: skip


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize(("case", "kind"), [*((case, "none") for case in CASES), *MESHED])
def test_the_kernels_equal_xla(case, kind, rate):
    """With dropout its draws, too: each element of the probabilities is dropped here as there."""
    length, key_length, num_heads, num_kv, head_dim, causal, window = CASES[case]
    rng = np.random.default_rng(0)
    q, out_weights = rng.normal(size=(2, ROWS, length, num_heads, head_dim)).astype(np.float32)
    k, v = rng.normal(size=(2, ROWS, key_length, num_kv, head_dim)).astype(np.float32)
    key_ids = segments(key_length)
    query_ids = key_ids if length == key_length else segments(length, seed=1)
    some_key = (query_ids[:, :, None] == key_ids[:, None]).any(-1)
    real = ((query_ids > 0) & some_key)[:, :, None, None]
    arrays = q, k, v, query_ids, key_ids, out_weights * real

    def make(compute):
        def outputs(q, k, v, query_ids, key_ids, out_weights):
            mask = Mask(query_ids, key_ids, causal=causal, window=window)
            out = attend(q, k, v, mask, compute, scale=0.2, dropout_rate=rate, key=jax.random.key(7))
            return (out * out_weights).sum(), out

        return jax.jit(jax.value_and_grad(outputs, argnums=(0, 1, 2), has_aux=True))

    layout = rules(kind)
    (_, expected), expected_grads = make(ComputeConfig(attention="xla"))(*arrays)
    (_, out), grads = make(ComputeConfig(attention="splash", rules=layout))(*arrays)
    assert np.isfinite(out).all()
    pairs = [(np.where(real, out, 0), np.where(real, expected, 0)), *zip(grads, expected_grads, strict=True)]
    for name, (ours, theirs) in zip("oqkv", pairs, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0, err_msg=name)


def test_layers_that_differ_in_the_window_choose_between_two_kernels():
    rng = np.random.default_rng(0)
    q, k, v = jnp.asarray(rng.normal(size=(3, 1, 128, 1, 8)), jnp.float32)
    ids = jnp.ones((1, 128), jnp.int32)

    @jax.jit
    def layer(windowed):
        mask = Mask(ids, ids, windowed=windowed, causal=True, window=3)
        return [attend(q, k, v, mask, ComputeConfig(attention=kernel)) for kernel in ("splash", "xla")]

    narrow, wide = layer(jnp.asarray(True)), layer(jnp.asarray(False))
    for splash, xla in (narrow, wide):
        np.testing.assert_allclose(splash, xla, atol=1e-5, rtol=0)
    assert np.abs(np.asarray(narrow[0]) - np.asarray(wide[0])).max() > 0.1


def calls(q, k, mask, compute, **settings) -> bool:
    """True where attention is the kernel's."""
    text = str(jax.make_jaxpr(lambda q, k: attend(q, k, k, mask, compute, **settings))(q, k))
    return "pallas_call" in text


def kernel_names(q, k, mask, compute, **settings) -> set[str]:
    text = str(jax.make_jaxpr(lambda q, k: attend(q, k, k, mask, compute, **settings))(q, k))
    return set(re.findall(r"name=(\w*mha\w*)", text))


@pytest.fixture
def tpu(monkeypatch):
    """Computation whose mesh has TPUs, as far as attention can tell."""
    monkeypatch.setattr(Rules, "platform", "tpu")
    return ComputeConfig(rules=Rules(make_mesh("ddp")))


def test_on_a_tpu_it_is_the_kernel_wherever_it_can_be(tpu):
    ids = jnp.ones((8, 256), jnp.int32)
    x = jnp.zeros((8, 256, 2, 16))
    mask, causal = Mask(ids, ids), Mask(ids, ids, causal=True, window=5)
    assert calls(x, x, mask, tpu) and calls(x, x, causal, tpu)
    assert calls(x, x[:, :128], Mask(ids, ids[:, :128]), tpu)
    # What it has not, what it gains nothing from, and what others are asked for.
    assert not calls(x, x, Mask(ids, ids, prefix_BS=ids, causal=True), tpu)
    assert not calls(x, x, mask, tpu, bias=jnp.zeros((1, 2, 256, 256)))
    assert not calls(x[:, :8], x, mask.at(ids[:, :8]), tpu)
    assert not calls(x[:, :96], x[:, :96], Mask(ids[:, :96], ids[:, :96]), tpu)
    assert not calls(x[:5], x[:5], Mask(ids[:5], ids[:5]), tpu)  # rows that eight devices do not divide
    assert not calls(x, x, mask, ComputeConfig(attention="xla", rules=tpu.rules))
    cache = empty_cache(1, 8, 256, 2, 16, jnp.float32).extend(ids[:, :1])
    assert not calls(x[:, :1], x, decoder_mask(ids[:, :1], cache), tpu)


def test_dropout_of_probabilities_has_a_kernel_of_its_own(tpu, monkeypatch):
    ids = jnp.ones((8, 256), jnp.int32)
    x = jnp.zeros((8, 256, 2, 16))
    mask = Mask(ids, ids)
    assert kernel_names(x, x, mask, tpu, dropout_rate=0.1, key=jax.random.key(0)) == {"flash_mha_fwd_whole"}
    assert not any("flash" in name for name in kernel_names(x, x, mask, tpu, dropout_rate=0.1))  # evaluation
    assert not calls(x, x, mask, tpu, dropout_rate=1 - 1e-6, key=jax.random.key(0))
    monkeypatch.setattr(flash, "LARGEST_GRADIENT", 256 * 128 * 12 - 1)
    assert not calls(x, x, mask, tpu, dropout_rate=0.1, key=jax.random.key(0))
    assert calls(x, x, mask, tpu)


@pytest.mark.parametrize("causal", [False, True])
def test_dropout_in_half_precision_equals_xla(causal):
    """Up to the rounding of weights, before or after they are divided by their sum; the same ones are dropped."""
    rng = np.random.default_rng(3)
    q, k, v, out_weights = (jnp.asarray(rng.normal(size=(2, 256, 2, 32)), jnp.bfloat16) for _ in range(4))
    ids = jnp.asarray(segments(256)[[0, 3]])
    mask = Mask(ids, ids, causal=causal)

    def make(kernel):
        def loss(q, k, v):
            out = attend(q, k, v, mask, ComputeConfig(attention=kernel), dropout_rate=0.2, key=jax.random.key(1))
            real = jnp.where((ids > 0)[:, :, None, None], out * out_weights, jnp.zeros_like(out))
            return real.astype(jnp.float32).sum()

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    for name, ours, theirs in zip("qkv", make("splash"), make("xla"), strict=True):
        ours, theirs = (np.asarray(x, np.float32) for x in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, atol=0.02 * np.abs(theirs).max(), rtol=0, err_msg=name)


def test_elsewhere_it_is_not():
    ids = jnp.ones((8, 256), jnp.int32)
    x = jnp.zeros((8, 256, 2, 16))
    assert not calls(x, x, Mask(ids, ids), ComputeConfig())
    assert calls(x, x, Mask(ids, ids), ComputeConfig(attention="splash"))


@pytest.mark.parametrize(
    "what, settings",
    [
        ("drop out attention probabilities: set model.attention_dropout=0 or model.attention=auto", "dropout"),
        ("add relative positions to the logits: set model.attention=auto", "bias"),
        ("read a prefix in both directions: set model.attention=auto", "prefix"),
        ("run on a gpu: set model.attention=auto", "gpu"),
    ],
)
def test_what_the_kernel_cannot_do_is_said(what, settings, monkeypatch):
    ids = jnp.ones((1, 128), jnp.int32)
    x = jnp.zeros((1, 128, 1, 8))
    mask = Mask(ids, ids, prefix_BS=ids if settings == "prefix" else None, causal=True)
    if settings == "gpu":
        monkeypatch.setattr(Rules, "platform", "gpu")
    given = {
        "dropout": {"dropout_rate": 1 - 1e-6, "key": jax.random.key(0)},
        "bias": {"bias": jnp.zeros((1, 1, 128, 128))},
    }.get(settings, {})
    with pytest.raises(UserError, match=f"model.attention=splash cannot {what}"):
        attend(x, x, x, mask, ComputeConfig(attention="splash"), **given)
