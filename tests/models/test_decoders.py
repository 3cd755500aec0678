"""GPT-2 and Llama's families as language models: who reads whom, packing, knobs, shards, cached decoding, first draws.

`models/test_models.py` holds them to the contract of every family as classifiers. Mistral and Qwen2 are Llama's network
with a window or biases, which the cases here have too.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import (
    FAST,
    Example,
    assert_close,
    column_gradients,
    examples,
    pack,
    tiny,
    token_logits,
    weights,
)

from jaxlm.models import FAMILIES, Model, gpt2
from jaxlm.models.base import flatten
from jaxlm.models.llama import LlamaConfig, rope_frequencies
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
decoders = pytest.mark.parametrize("family", DECODERS)
ALTERNATING = {"window": 3, "windowed_layers": (False, True, False)}
LLAMA3 = {"rope_type": "llama3", "rope_factor": 4.0, "rope_original_positions": 16, "rope_theta": 50.0}
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}
CASES = {
    "gpt2": {"tied": False},
    "llama": {**LLAMA3, **BIASES, "tied": False},
    "qwen3": ALTERNATING,  # tied, with norms of queries and keys
}
cases = pytest.mark.parametrize("family", CASES)


@functools.cache
def causal(family: str, compute: ComputeConfig | None = None, **changes) -> Model:
    model = tiny(family, **changes)
    return Model(model.family, model.config, "causal_lm", 0, compute or ComputeConfig())


def rows_of(texts: list[list[Example]], length: int = 21) -> dict[str, np.ndarray]:
    """A packed batch without slots, and every text's first two tokens as its prefix."""
    batch = pack(texts, length, 3)
    batch["prefix"] = ((batch["positions"] < 2) & (batch["segment_ids"] > 0)).astype(np.int32)
    return {name: batch[name] for name in ("tokens", "segment_ids", "positions", "prefix")}


def without_prefix(batch):
    return {name: value for name, value in batch.items() if name != "prefix"}


@pytest.mark.parametrize(
    ("family", "changes", "prefix"),
    [
        ("gpt2", {}, False),
        ("llama", {}, True),
        ("mistral", {"num_layers": 2, "window": 3}, False),
        ("qwen3", {"num_layers": 2, "window": 3, "windowed_layers": (True, False)}, True),
    ],
)
def test_states_depend_on_what_the_mask_lets_them_read_alone(family, changes, prefix):
    """By the gradient of each position's state in each token's embedding; a window of 3 reaches 2 back a layer."""
    model = causal(family, **changes)
    params = weights(model)
    trunk: Any = model.family.trunk(model.config, model.compute)
    segments = np.asarray([1] * 8 + [2] * 6 + [0] * 2)
    positions = np.asarray([*range(8), *range(6), 0, 0])
    inside = (positions < 3) & (segments > 0)
    arrays = {"segment_ids": segments, "positions": positions} | ({"prefix": inside} if prefix else {})
    arrays = {name: jnp.asarray(value[None], jnp.int32) for name, value in arrays.items()}
    tokens = jnp.arange(16, dtype=jnp.int32)[None]  # each column a row of the table of its own

    def influence(params):
        def states(extra):
            own = {**params, "tokens": params["tokens"].at[:16].add(extra)}
            return trunk.apply({"params": own}, tokens=tokens, **arrays)[0]

        return column_gradients(states, jnp.zeros((16, 16)), 16)

    reads = np.asarray(jax.jit(influence, compiler_options=FAST)(params["trunk"])) > 1e-6

    back = np.arange(16)[:, None] - np.arange(16)[None]
    same = segments[:, None] == segments[None]
    through = np.eye(16, dtype=int)
    for windowed in changes.get("windowed_layers", (True,) * model.config.num_layers):
        window = changes["window"] if changes and windowed else 16
        seen = same & ((back >= 0) & (back < window) | (prefix & inside[None]))
        through = through @ seen.astype(int)
    np.testing.assert_array_equal(reads, through > 0)


@cases
def test_packed_texts_give_the_logits_they_give_alone(family):
    model = causal(family, **CASES[family])
    params = weights(model)
    texts = examples(4, seed=2, longest=7)
    packed = token_logits(model, params, rows_of([texts[:3], texts[3:], []]))
    chex.assert_shape(packed, (3, 21, 64))
    alone = token_logits(model, params, rows_of([[t] for t in texts[:3]]))
    start = 0
    for row, text in zip(alone, texts[:3], strict=True):
        end = start + len(text.tokens)
        np.testing.assert_allclose(packed[0, start:end], row[: end - start], atol=2e-5, rtol=0)
        start = end
    assert np.ptp(packed[0, :start], axis=0).min() > 0.05  # positions are told apart at all


@cases
def test_a_prefix_changes_what_its_own_tokens_say_and_slots_give_the_logits_of_their_positions(family):
    model = causal(family, **CASES[family])
    params = weights(model)
    texts = examples(2, seed=3, longest=7)
    batch = rows_of([texts, examples(1, seed=4), []])
    nothing = {**batch, "prefix": np.zeros_like(batch["prefix"])}
    plain, prefixed = token_logits(model, params, nothing), token_logits(model, params, batch)
    moved = np.abs(prefixed - plain).max(-1)[0]
    first = batch["positions"][0] == 0  # reads the second token now
    assert moved[first & (batch["segment_ids"][0] > 0)].min() > 1e-3

    slots = np.asarray([[1, 2, 5], [0, 1, 0], [0, 0, 0]], np.int32)
    at_slots = token_logits(model, params, {**without_prefix(batch), "slot_positions": slots})
    expected = np.take_along_axis(plain, slots[..., None], axis=1)  # no prefix is a prefix of nothing
    np.testing.assert_allclose(at_slots, expected, atol=1e-5, rtol=0)


_gradients: dict[int, Any] = {}


def loss_and_gradients(model: Model, params, batch):
    def loss(params, batch):
        logits = model.apply(params, batch).logits()
        mix = np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)
        return jnp.where((batch["segment_ids"] > 0)[..., None], jnp.sin(logits) * mix, 0.0).sum()

    compiled = _gradients.setdefault(id(model), jax.jit(jax.value_and_grad(loss), compiler_options=FAST))
    return jax.device_get(compiled(params, batch))


def eight_rows() -> dict[str, np.ndarray]:
    return without_prefix(rows_of([[text] for text in examples(8, seed=6, longest=8)], length=8))


@cases
def test_gradient_reaches_every_parameter_of_every_layer(family):
    model = causal(family, **CASES[family])
    assert ("head/unembed" in flatten(model.shapes)) == (not model.config.tied)
    params = weights(model)
    expected = loss_and_gradients(model, params, eight_rows())
    for name, gradient in flatten(expected[1]).items():
        norms = np.abs(np.asarray(gradient)).reshape(3 if "/layers/" in name else 1, -1).max(-1)
        assert norms.min() > 1e-4, name
    if family == "qwen3":  # whose layers differ in their windows; `test_models.py` has the other stacks
        changed = causal(family, ComputeConfig(unroll=2, remat="full"), **CASES[family])
        assert_close(loss_and_gradients(changed, params, eight_rows()), expected)


def test_shards_of_fused_queries_keys_and_values_change_neither_loss_nor_gradients():
    """GPT-2's; `parallel/test_mesh_equality.py` has Llama on every mesh."""
    params, batch = weights(causal("gpt2", tied=False)), eight_rows()
    expected = loss_and_gradients(causal("gpt2", tied=False), params, batch)
    rules = Rules(make_mesh("fsdp_tp", data=2, fsdp=2, tensor=2))
    model = causal("gpt2", ComputeConfig(rules=rules), tied=False)
    placed = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
    heads = placed["trunk"]["layers"]["qkv"].addressable_shards[0].data.shape[-2]
    assert heads == params["trunk"]["layers"]["qkv"].shape[-2] // 2  # a half on each of two devices
    arrays = jax.device_put(batch, batch_shardings(batch, rules))
    assert_close(loss_and_gradients(model, placed, arrays), expected)


@decoders
def test_every_parameter_names_its_axes(family):
    """Heads of queries, keys and values are split over `tensor`, and so is the vocabulary."""
    model = causal(family, **(BIASES if family == "llama" else {}))
    axes, shapes = flatten(model.axes), flatten(model.shapes)
    rules = Rules()
    for name, names in axes.items():
        assert len(names) == len(shapes[name].shape), name
        split = "tensor" in rules.spec(names)
        heads = any(part in name for part in ("/q", "/k", "/v", "/o", "/gate", "/up", "/down"))
        assert split == ("vocab" in names or heads) or (
            name.endswith(("_norm_scale", "/o_bias", "/down_bias")) and not split
        ), name


def left_padded(texts: list[list[int]], length: int) -> dict[str, np.ndarray]:
    batch = {name: np.zeros((len(texts), length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    for row, text in enumerate(texts):
        start = length - len(text)
        batch["tokens"][row, start:] = text
        batch["segment_ids"][row, start:] = 1
        batch["positions"][row, start:] = np.arange(len(text))
    return batch


_decoders: dict[int, Any] = {}


def decode(model: Model, params, batch, cache, prefix=None):
    def step(params, batch, cache, prefix):
        outputs, cache = model.decode(params, **batch, cache=cache, prefix=prefix)
        return outputs.logits(), cache

    compiled = _decoders.setdefault(id(model), jax.jit(step, compiler_options=FAST))
    return compiled(params, batch, cache, prefix)


PREFIX = {"gpt2": False, "llama": False, "qwen3": True}


@pytest.mark.parametrize(("family", "prefixed"), PREFIX.items())
def test_cached_decoding_equals_the_full_forward_pass(family, prefixed):
    """Prompts of different lengths, padded on the left, read in pieces and then token by token."""
    knobs = ComputeConfig(unroll=3, remat="full") if family == "llama" else None
    model = causal(family, knobs, **CASES[family])
    params = weights(model)
    rng = np.random.default_rng(7)
    texts = [rng.integers(4, 64, length).tolist() for length in (14, 11, 3)]
    batch = left_padded(texts, 14)
    inside = ((np.arange(14)[None] < 5) & (batch["segment_ids"] > 0)).astype(np.int32)
    expected = token_logits(model, params, batch | ({"prefix": inside} if prefixed else {}))
    cache = model.init_cache(3, 20)
    for start, stop in ((0, 5), (5, 10), (10, 11), (11, 12), (12, 13), (13, 14)):
        piece = {name: value[:, start:stop] for name, value in batch.items()}
        logits, cache = decode(model, params, piece, cache, inside[:, :5] if prefixed and start == 0 else None)
        chex.assert_shape(logits, (3, 1, 64))
        real = batch["segment_ids"][:, stop - 1] > 0
        np.testing.assert_allclose(logits[real, 0], expected[real, stop - 1], atol=2e-5, rtol=0)
    assert real.all()
    if not prefixed:  # and the same texts side by side, as they would be trained on
        packed = pack([[Example(text, [0] * len(text)) for text in texts[1:]], [], []], 14, 2)
        packed = token_logits(model, params, {name: packed[name] for name in batch})
        np.testing.assert_allclose(logits[1, 0], packed[0, 10], atol=2e-5, rtol=0)
        np.testing.assert_allclose(logits[2, 0], packed[0, 13], atol=2e-5, rtol=0)


def test_a_half_precision_cache_is_close():
    params = weights(causal("gpt2", tied=False))
    batch = left_padded([list(range(10, 24)), list(range(30, 36)), [4]], 14)
    exact = token_logits(causal("gpt2", tied=False), params, batch)[:, -1]
    model = causal("gpt2", ComputeConfig(dtype=jnp.bfloat16), tied=False)
    cache = model.init_cache(3, 14)
    assert cache.keys.dtype == jnp.bfloat16
    for start in (0, 7):
        piece = {name: value[:, start : start + 7] for name, value in batch.items()}
        logits, cache = decode(model, params, piece, cache)
    assert logits.dtype == jnp.float32
    assert 0 < np.abs(logits[:, 0] - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_untrained_model_finds_all_tokens_about_as_likely(family):
    model = causal(family, **CASES[family])
    params = jax.jit(model.init, compiler_options=FAST)(jax.random.key(0, impl="rbg"))
    surprise = -jax.nn.log_softmax(token_logits(model, params, rows_of([examples(3, longest=7), [], []])))
    assert abs(surprise.mean() - math.log(64)) < 0.1


def test_gpt2_starts_what_adds_to_the_residual_smaller():
    """By 1 / sqrt(2 L): Radford et al., 2019, section 2.3."""
    model = causal("gpt2", embed_dim=64, mlp_dim=256, num_layers=8)
    layers = jax.jit(model.init, compiler_options=FAST)(jax.random.key(0, impl="rbg"))["trunk"]["layers"]
    for name, expected in {"qkv": 0.02, "up": 0.02, "o": 0.005, "down": 0.005}.items():
        assert abs(layers[name].std() / expected - 1) < 0.05, name


@pytest.mark.parametrize(("own", "embedding"), [({}, 0.25), ({"embed_dropout": 0.125}, 0.125)])
def test_embedding_dropout_is_the_residual_one_where_gpt2_names_no_other(own, embedding, monkeypatch):
    model, drawn = causal("gpt2", dropout=0.25, attention_dropout=0.0, **own), []
    shapes = model.shapes
    monkeypatch.setattr(gpt2, "dropout", lambda x, rate, key: drawn.append(rate) or x)
    jax.eval_shape(model.apply, shapes, eight_rows(), jax.random.key(0))
    assert drawn[0] == embedding and set(drawn[1:]) == {0.25}


def test_rotary_frequencies_scale_as_published():
    """Llama 3.1's: wavelengths up to 8192 / 4 stay, from 8192 on they grow 8 times (its model code, in words)."""
    base = LlamaConfig(embed_dim=4096, num_heads=32, rope_theta=500000.0)
    plain = rope_frequencies(base)
    np.testing.assert_allclose(plain[[0, 1, -1]], [1.0, 500000 ** (-1 / 64), 500000 ** (-63 / 64)], rtol=1e-6)
    linear = LlamaConfig(embed_dim=4096, num_heads=32, rope_theta=500000.0, rope_type="linear", rope_factor=4.0)
    np.testing.assert_allclose(rope_frequencies(linear), plain / 4, rtol=1e-6)
    scaled = rope_frequencies(LlamaConfig(rope_theta=500000.0, rope_type="llama3", rope_factor=8.0))
    wavelengths = 2 * np.pi / plain
    short, long = wavelengths < 2048, wavelengths > 8192
    assert short.sum() > 20 and long.sum() > 20 and (~short & ~long).sum() > 5
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-6)
    ratio = (scaled / plain)[~short & ~long]
    assert (np.diff(ratio) < 0).all() and ratio.max() < 1 and ratio.min() > 1 / 8


def test_no_cache_no_text():
    with pytest.raises(Exception, match="model family 'bert' cannot generate text"):
        tiny("bert").init_cache(1, 4)
    assert {name for name, family in FAMILIES.items() if family.init_cache is not None} >= set(DECODERS)
