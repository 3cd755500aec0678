"""Recurrent language models: rows, gates, steps and shards, against their formulas.

LSTM and GRU are one trunk with two cells: the cell's tests have both, the trunk's the LSTM.
"""

from __future__ import annotations

import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.recurrent_models import families, lm, rows
from helpers.tiny_models import (
    FAST,
    NUM_OUTPUTS,
    Example,
    apply,
    assert_close,
    column_gradients,
    examples,
    inputs,
    pack,
    tiny,
    token_logits,
    weights,
)

from jaxlm.errors import UserError
from jaxlm.inference.generate import generate
from jaxlm.models import FAMILIES, Model, recurrent
from jaxlm.models.base import flatten, override
from jaxlm.nn import heads
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings
from jaxlm.tasks.records import Generation

KEYS = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]


def three_rows() -> dict[str, np.ndarray]:
    a, b, c, d, e = examples(5, seed=1, longest=7)
    return rows([[a, b, c], [d], [e]])


@families
def test_parameter_counts_follow_the_formula(family):
    """Of a layer: G (I H + H H + 2 H); plus tables, plus the projection to a table of another width."""
    gates = {"lstm": 4, "gru": 3}[family]
    record = FAMILIES[family]
    for preset, config in record.presets.items():
        E, H, V = config.embed_dim, config.hidden_dim, config.vocab_size
        inputs = [E] + [H] * (config.num_layers - 1)
        expected = V * E + sum(gates * (i * H + H * H + 2 * H) for i in inputs) + (H * E + E if E != H else 0)
        assert record.published[preset] == expected
        assert Model(record, config, "causal_lm", 0).num_parameters == expected


def test_zarembas_large_model_has_the_published_66_million():
    config = override(
        FAMILIES["lstm"].presets["small"], {"vocab_size": 10000, "embed_dim": 1500, "hidden_dim": 1500, "tied": False}
    )
    assert round(Model(FAMILIES["lstm"], config, "causal_lm", 0).num_parameters / 1e6) == 66


@families
def test_packed_texts_give_the_outputs_they_give_alone(family):
    texts = examples(6, seed=2, longest=7)
    model = lm(family)
    params = weights(model)
    packed = token_logits(model, params, rows([texts[:3], texts[3:5], texts[5:]]))
    alone = token_logits(model, params, rows([[text] for text in texts[:3]]))
    start = 0
    for row, text in zip(alone, texts[:3], strict=True):
        end = start + len(text.tokens)
        np.testing.assert_allclose(packed[0, start:end], row[: end - start], atol=1e-5, rtol=0)
        start = end
    assert np.ptp(packed[0, :start], axis=0).min() > 0.01


def test_a_classifier_reads_an_examples_last_token():
    texts = examples(6, seed=2, longest=7)
    classifier = tiny("lstm")
    params = weights(classifier)
    together = apply(classifier, params, pack([texts[:3], texts[3:5], texts[5:]], 21, 3))
    chex.assert_shape(together, (3, 3, NUM_OUTPUTS))
    alone = apply(classifier, params, pack([[text] for text in texts[:3]], 21, 3))
    np.testing.assert_allclose(together[0], alone[:, 0], atol=1e-5, rtol=0)


def test_padding_never_reaches_a_text_on_either_side_of_it():
    model = lm("lstm")
    params = weights(model)
    (text,) = examples(1, seed=3)
    length = len(text.tokens)
    arrays = {name: np.zeros((3, 21), np.int32) for name in ("tokens", "segment_ids", "positions")}
    rng = np.random.default_rng(0)
    for row, start in enumerate((0, 5, 21 - length)):
        arrays["tokens"][row] = rng.integers(0, 64, 21)
        arrays["positions"][row] = rng.integers(1, 24, 21)
        part = slice(start, start + length)
        arrays["tokens"][row, part], arrays["segment_ids"][row, part] = text.tokens, 1
        arrays["positions"][row, part] = np.arange(length)
    logits = token_logits(model, params, arrays)
    for row, start in ((1, 5), (2, 21 - length)):
        np.testing.assert_allclose(logits[row, start : start + length], logits[0, :length], atol=1e-6, rtol=0)


def test_causality_by_gradient():
    """What the logits at column t read: the columns of their own text up to t, each of them."""
    model = lm("lstm")
    batch = three_rows()
    params = weights(model)

    def influence(params, batch):
        trunk: Any = model.family.trunk(model.config, model.compute)
        table = params["trunk"]["tokens"]

        def states(extra):  # [T, E] added to the embeddings by a table of one row per column
            own = jnp.concatenate([table, table[batch["tokens"][0]] + extra])
            arrays = {name: batch[name][:1] for name in ("segment_ids", "positions")}
            tokens = jnp.arange(21, dtype=jnp.int32)[None] + 64
            longer = trunk.clone(config=override(model.config, {"vocab_size": 64 + 21}))
            return longer.apply({"params": {**params["trunk"], "tokens": own}}, tokens=tokens, **arrays)[0]

        return column_gradients(states, jnp.zeros((21, 24)), 21)

    reads = np.asarray(jax.jit(influence, compiler_options=FAST)(params, batch))
    segments = batch["segment_ids"][0]
    allowed = (segments[:, None] == segments[None]) & np.tri(21, dtype=bool) & (segments > 0)[:, None]
    real = segments > 0
    assert reads[allowed].min() > 1e-6
    assert (reads[real][:, ~allowed.any(0)] == 0).all()
    assert (reads[~allowed & real[:, None]] == 0).all()


def by_hand(family: str, params, tokens: list[int]) -> np.ndarray:
    """The recurrence from its published equations, a step at a time, in float64."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    trunk = jax.tree.map(lambda p: np.asarray(p, np.float64), params["trunk"])
    x = trunk["tokens"][tokens]
    layers = [jax.tree.map(lambda p: p[0], trunk["first"])]
    layers += [jax.tree.map(lambda p, i=i: p[i], trunk["layers"]) for i in range(2)]
    for p in layers:
        h, c, outputs = np.zeros(16), np.zeros(16), []
        for token in x:
            a = np.einsum("e,egh->gh", token, p["input"]) + p["input_bias"]
            b = np.einsum("e,egh->gh", h, p["recur"]) + p["recur_bias"]
            if family == "lstm":
                i, f, g, o = a + b
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                h = sigmoid(o) * np.tanh(c)
            else:
                r, z = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
                h = (1 - z) * np.tanh(a[2] + r * b[2]) + z * h
            outputs.append(h)
        x = np.stack(outputs)
    return (x @ trunk["project"] + trunk["project_bias"]) @ trunk["tokens"].T


@families
def test_gates_are_those_of_the_formulas(family):
    params = weights(lm(family))
    (text,) = examples(1, seed=4)
    logits = token_logits(lm(family), params, rows([[text], [], []]))[0, : len(text.tokens)]
    np.testing.assert_allclose(logits, by_hand(family, params, text.tokens), atol=1e-5, rtol=0)


@families
def test_steps_give_what_whole_rows_give(family):
    """Two prompts, the shorter padded on the left, read at once or in parts, then a token at a time."""
    model = lm(family)
    params = weights(model)
    first, second = examples(2, seed=5, longest=8)
    tokens = [first.tokens[:4] + second.tokens, second.tokens]
    length = len(tokens[0])
    batch = {name: np.zeros((2, length), np.int32) for name in ("tokens", "segment_ids", "positions")}
    for row, ids in enumerate(tokens):
        part = slice(length - len(ids), length)
        batch["tokens"][row, part], batch["segment_ids"][row, part] = ids, 1
        batch["positions"][row, part] = np.arange(len(ids))
    expected = token_logits(model, params, batch)
    chex.assert_equal(len({len(ids) for ids in tokens}), 2)
    decode = jax.jit(model.decode, compiler_options=FAST)
    for prompt in (1, 6):
        cache = model.init_cache(2, length)
        for start, end in [(0, prompt), *((t, t + 1) for t in range(prompt, length))]:
            columns = (batch[name][:, start:end] for name in ("tokens", "segment_ids", "positions"))
            factors, cache = decode(params, *columns, cache)
            chex.assert_shape(factors.logits(), (2, 1, 64))
            np.testing.assert_allclose(factors.logits()[:, 0], expected[:, end - 1], atol=1e-5, rtol=0)
    assert {leaf.shape for leaf in jax.tree.leaves(cache)} == {(3, 2, 16)}


def test_generation_continues_with_the_likeliest_tokens():
    model = lm("lstm")
    params = weights(model)
    prompts = [text.tokens for text in examples(3, seed=6, longest=6)]
    written = generate(model, params, prompts, Generation(max_new_tokens=4))
    for prompt, [(new, _)] in zip(prompts, written, strict=True):
        text = Example(prompt + new, [])
        logits = token_logits(model, params, rows([[text._replace(token_types=[0] * len(text.tokens))], [], []]))[0]
        assert new == logits[len(prompt) - 1 : len(text.tokens) - 1].argmax(-1).tolist()
    with pytest.raises(UserError, match="reads from left to right alone"):
        generate(model, params, prompts, Generation(max_new_tokens=1, prefix=True))


def eight_rows() -> dict[str, np.ndarray]:
    texts = examples(11, seed=6)
    return rows([texts[:2], texts[2:3], texts[3:5], texts[5:6], texts[6:7], texts[7:8], texts[8:10], texts[10:]])


_gradients: dict[int, Any] = {}


def loss_and_gradients(model: Model, params, batch, key=KEYS[0]):
    """Of a loss that weighs every logit of every real token differently."""

    def loss(params, batch, key):
        logits = model.apply(params, batch, key).logits()
        mix = np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)
        return (jnp.sin(logits) * mix * (batch["segment_ids"] > 0)[..., None].astype(jnp.float32)).sum()

    compiled = _gradients.setdefault(id(model), jax.jit(jax.value_and_grad(loss), compiler_options=FAST))
    return jax.device_get(compiled(params, batch, key))


@pytest.mark.parametrize(("family", "begins"), [("lstm", True), ("gru", False)])
def test_gradients_are_those_of_the_plain_scan(family, begins):
    """The products over all tokens at once, against what JAX derives by itself; restarts and given states included."""
    cell = {"lstm": recurrent.LSTM, "gru": recurrent.GRU}[family]
    rng = np.random.default_rng(0)
    shapes = [(7, 2, cell.num_gates, 5), (5, cell.num_gates, 5), (cell.num_gates, 5)]
    x, weight, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    state = tuple(jnp.asarray(rng.normal(size=(2, 5)), jnp.float32) for _ in range(cell.num_states))
    restart = jnp.zeros((7, 2), bool).at[3, 0].set(True).at[0, 1].set(True)
    begin = tuple(jnp.asarray(rng.normal(size=(7, 2, 5)), jnp.float32) for _ in range(cell.num_states))
    begin = begin if begins else None

    def loss(run, x, weight, bias, state, begin):
        h, after = run(cell, x, weight, bias, restart, state, begin)
        return (jnp.sin(h) * jnp.arange(70.0).reshape(7, 2, 5)).sum() + sum(jnp.cos(s).sum() for s in after)

    plain = lambda cell, x, weight, bias, *rest: recurrent._scan(cell, x, None, weight, bias, *rest)  # noqa: E731
    ours, theirs = (
        jax.jit(jax.value_and_grad(functools.partial(loss, run), (0, 1, 2, 3, 4)))(x, weight, bias, state, begin)
        for run in (recurrent.recur, plain)
    )
    assert_close(ours, theirs)
    for gradient in jax.tree.leaves(ours[1]):
        assert np.abs(gradient).max() > 1e-3


def test_gradients_reach_every_parameter_of_every_layer_whatever_the_knobs_and_shards():
    """With dropout, whose draws are the same."""
    batch, params = eight_rows(), weights(lm("lstm"))
    expected = loss_and_gradients(lm("lstm"), params, batch)
    for name, gradient in flatten(expected[1]).items():
        stacked = np.asarray(gradient).reshape(2 if "/layers/" in name else 1, -1)
        assert np.abs(stacked).max(-1).min() > 1e-3, name
    knobs = lm("lstm", ComputeConfig(unroll=2, remat="full"))
    assert_close(loss_and_gradients(knobs, params, batch), expected)
    rules = Rules(make_mesh("fsdp_tp", data=2, fsdp=2, tensor=2))
    model = lm("lstm", ComputeConfig(rules=rules))
    placed = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
    arrays = jax.device_put(batch, batch_shardings(batch, rules))
    assert_close(loss_and_gradients(model, placed, arrays), expected)


def test_recurrent_weights_are_gathered_before_the_loop_over_time():
    rules = Rules(make_mesh("fsdp"))
    model = lm("lstm", ComputeConfig(rules=rules))
    batch = rows([[text] for text in examples(8, seed=6)])
    shapes = {
        name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=batch_shardings(batch, rules)[name])
        for name, value in batch.items()
    }
    step = jax.jit(lambda p, b: model.apply(p, b).states, compiler_options=FAST).lower(model.shapes, shapes).compile()
    text = step.as_text() or ""
    assert "all-gather" in text
    bodies = set(re.findall(r"while\(.*body=%?([\w.-]+)", text))
    blocks = {block.split()[0].lstrip("%"): block for block in text.split("\n\n") if block.strip()}
    inner = [name for name in bodies if "while(" not in blocks[name]]  # the outer loop runs over layers
    assert len(inner) == 2
    for name in inner:
        assert not re.search("all-gather|all-reduce|collective-permute|all-to-all", blocks[name])


def test_dropout_follows_the_key_and_acts_not_on_the_recurrence(monkeypatch):
    batch, model = eight_rows(), lm("lstm")
    params = weights(model)
    first, again, other = (loss_and_gradients(model, params, batch, key) for key in (KEYS[0], *KEYS))
    chex.assert_trees_all_equal(first, again)
    assert abs(first[0] - other[0]) > 1e-3

    drawn = []

    def counted(x, rate, key):
        if key is not None:
            drawn.append((rate, x.shape))
        return x

    monkeypatch.setattr(recurrent, "dropout", counted)
    monkeypatch.setattr(heads, "dropout", counted)
    model = lm("lstm", ComputeConfig(unroll=3), dropout=0.4)
    jax.eval_shape(model.apply, model.shapes, batch, None)
    assert not drawn  # without a key, nothing is dropped
    jax.eval_shape(model.apply, model.shapes, batch, KEYS[0])
    widths = (24, 16, 16, 16)  # the embeddings, between layers, the last layer's output
    assert drawn == [(0.4, (8, 21, width)) for width in widths]
    drawn.clear()
    classifier = tiny("lstm", classifier_dropout=0.5, dropout=0.0)
    batch = pack([examples(3, seed=1, longest=7)], 21, 3)
    jax.eval_shape(classifier.apply, classifier.shapes, inputs(batch, classifier), KEYS[0])
    assert drawn[-1] == (0.5, (1, 3, 16)) and {rate for rate, _ in drawn[:-1]} == {0.0}


def test_bfloat16_is_finite_and_close():
    batch, params = three_rows(), weights(lm("lstm"))
    real = batch["segment_ids"] > 0
    exact, half = (
        token_logits(lm("lstm", ComputeConfig(dtype=d)), params, batch)[real] for d in (jnp.float32, jnp.bfloat16)
    )
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


@families
def test_initialisation(family):
    params = flatten(jax.jit(lm(family).init, compiler_options=FAST)(KEYS[0]))
    for name in ("first/input", "layers/input", "layers/recur"):
        values = np.asarray(params[f"trunk/{name}"])
        assert 0.24 < np.abs(values).max() <= 0.25 and abs(values.mean()) < 0.02  # 1 / sqrt(16)
    assert np.abs(params["trunk/layers/recur"][0] - params["trunk/layers/recur"][1]).max() > 0.1
    biases = np.asarray(params["trunk/layers/input_bias"])
    if family == "lstm":
        assert (biases[:, 1] == 1).all() and (np.delete(biases, 1, axis=1) == 0).all()
    else:
        assert (biases == 0).all()
    assert (np.asarray(params["trunk/layers/recur_bias"]) == 0).all()


def test_variants_have_the_parameters_they_need():
    same = lm("lstm", embed_dim=16)
    assert "project" not in same.shapes["trunk"]
    untied = lm("lstm", tied=False)
    assert "project" not in untied.shapes["trunk"] and untied.shapes["head"]["unembed"].shape == (64, 16)
    single = lm("gru", num_layers=1)
    assert "layers" not in single.shapes["trunk"]
    (text,) = examples(1, seed=1)
    assert np.isfinite(token_logits(single, weights(single), rows([[text]]))).all()
    with pytest.raises(UserError, match=r"model\.config\.max_positions: unknown field"):
        lm("lstm", max_positions=3)
    assert FAMILIES["lstm"].config.max_positions == 1_000_000
    assert "prefix" not in FAMILIES["gru"].inputs
