"""The contract of every model family: sizes, packing, execution knobs, dropout, precision, heads.

Every family is run once forward. The rest is asked of one family for each trunk, `TRUNKS`: what BERT, DistilBERT and
RoBERTa have of their own is in their embeddings and heads. `parallel/test_mesh_equality.py` has the meshes.
"""

from __future__ import annotations

import collections
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_models import (
    FAMILY_SIZES,
    FAST,
    NUM_OUTPUTS,
    apply,
    assert_close,
    examples,
    inputs,
    pack,
    tiny,
    weights,
)

from jaxlm import models
from jaxlm.errors import UserError
from jaxlm.models import FAMILIES, Model, deberta, encoder, get_family, gpt2, llama
from jaxlm.models.base import flatten, override
from jaxlm.nn import attention, heads
from jaxlm.nn.dropout import dropout
from jaxlm.nn.layers import ComputeConfig
from jaxlm.nn.stacks import run_stack
from jaxlm.parallel.sharding import Rules

TRUNKS = ("albert", "electra", "gpt2", "llama", "modernbert")
RATES = {"dropout": 0.1, "attention_dropout": 0.1, "classifier_dropout": 0.1}
families = pytest.mark.parametrize("family", FAMILY_SIZES)
SLOW = ("albert", "deberta-v2", "electra")
trunks = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in (*TRUNKS, "deberta-v2")]
)
KEYS = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]  # compiles faster than the default generator
PRESETS = [(name, preset) for name, family in FAMILIES.items() for preset in family.presets]


def test_every_family_is_under_contract():
    elsewhere = {"lstm", "gru", "t5", "mt5"}  # models/test_recurrent.py, models/test_t5.py
    # models/test_encoder_decoders.py
    elsewhere |= {"bart", "marian", "mbart", "pegasus", "lstm_seq2seq", "gru_seq2seq"}
    here = [family for name, family in FAMILIES.items() if name not in elsewhere]
    assert {family.trunk for family in here} == {FAMILIES[name].trunk for name in FAMILY_SIZES}
    built = {type(family.trunk(family.config(), ComputeConfig())) for family in here}
    assert built == {type(FAMILIES[name].trunk(FAMILIES[name].config(), ComputeConfig())) for name in TRUNKS}


def packed_batch(pad_id: int = 0) -> dict[str, np.ndarray]:
    a, b, c, d, e = examples(5, seed=1, longest=7)
    return pack([[a, b, c], [d], [e]], length=21, slots=3, pad_id=pad_id)


def read_slots(model: Model, params, batch) -> np.ndarray:
    return np.asarray(jax.jit(model.apply, compiler_options=FAST)(params, batch))


_compiled = {}


def loss_and_gradients(model: Model, params, batch, key):
    """Of a loss that weighs every output of every real slot differently; one compilation per model."""

    def loss(params, batch, key):
        outputs = model.apply(params, inputs(batch, model), key)
        mix = np.random.default_rng(5).normal(size=outputs.shape).astype(np.float32)
        return (jnp.sin(outputs) * mix * batch["weights"][..., None]).sum()

    compiled = _compiled.setdefault(id(model), jax.jit(jax.value_and_grad(loss), compiler_options=FAST))
    return jax.device_get(compiled(params, batch, key))


@pytest.mark.parametrize(("family", "preset"), PRESETS)
def test_published_parameter_counts(family, preset):
    record = FAMILIES[family]
    head = next(name for name in ("causal_lm", "seq2seq_lm", "classification") if name in record.heads)
    model = Model(record, record.presets[preset], head, 2)
    assert model.num_parameters == record.published[preset]


@families
def test_packed_examples_give_the_outputs_they_give_alone(family):
    model = tiny(family)
    params = weights(model)
    texts = examples(6, seed=2, longest=7)
    shape = {"length": 21, "slots": 3, "pad_id": model.config.pad_id}
    packed = apply(model, params, pack([texts[:3], texts[3:5], texts[5:]], **shape))
    chex.assert_shape(packed, (3, 3, NUM_OUTPUTS))
    together = np.concatenate([packed[0], packed[1, :2], packed[2, :1]])
    alone = [apply(model, params, pack([[text] for text in part], **shape)) for part in (texts[:3], texts[3:])]
    np.testing.assert_allclose(together, np.concatenate(alone)[:, 0], atol=1e-5, rtol=0)
    assert np.ptp(together, axis=0).min() > 0.05  # the texts are told apart at all


@families
def test_outputs_depend_on_every_input_of_their_example_alone(family):
    model = tiny(family)
    params = weights(model)
    batch = packed_batch()
    before = apply(model, params, batch)
    for name in ("tokens", "positions", "token_types"):
        changed = {key: value.copy() for key, value in batch.items()}
        column = changed["slot_positions"][0, 1] + 1  # the second token of the second example in row 0
        changed[name][0, column] = 1 - changed[name][0, column] if name == "token_types" else 17
        moved = np.abs(apply(model, params, changed) - before).max(-1)
        reads_types = getattr(model.config, "num_types", 0) > 1
        if name == "token_types" and not reads_types:
            assert moved.max() == 0
            continue
        assert moved[0, 1] > 1e-4, name
        moved[0, 1] = 0
        assert moved[batch["weights"] > 0].max() < 1e-6, name


@families
def test_content_of_padding_never_changes_an_output(family):
    model = tiny(family)
    params = weights(model)
    batch = packed_batch(model.config.pad_id)
    real = batch["weights"] > 0
    clean = apply(model, params, batch)[real]
    empty = batch["segment_ids"] == 0
    assert empty.sum() > 10
    rng = np.random.default_rng(3)
    for name, limit in (("tokens", 64), ("positions", 24), ("token_types", 2)):
        batch[name][empty] = rng.integers(0, limit, empty.sum())
    np.testing.assert_array_equal(apply(model, params, batch)[real], clean)


@trunks
def test_slots_only_last_layer_equals_gathering_from_all_states(family):
    """A head answers at every token where a batch has no slots."""
    record = FAMILIES[family]
    model = Model(record, tiny(family).config, "token_classification", NUM_OUTPUTS)
    params, batch = weights(model), inputs(packed_batch(), tiny(family))
    slots = batch["slot_positions"]
    everywhere = apply(model, params, {name: value for name, value in batch.items() if name != "slot_positions"})
    chex.assert_shape(everywhere, (3, 21, NUM_OUTPUTS))
    expected = np.take_along_axis(everywhere, np.asarray(slots)[..., None], axis=1)
    np.testing.assert_allclose(read_slots(model, params, batch), expected, atol=1e-5, rtol=0)


@trunks
def test_execution_knobs_change_neither_loss_nor_gradients_nor_dropout(family):
    batch = packed_batch()
    params = weights(tiny(family, **RATES))
    expected = loss_and_gradients(tiny(family, **RATES), params, batch, KEYS[0])
    knobs = ComputeConfig(unroll=2, remat="full")
    assert_close(loss_and_gradients(tiny(family, knobs, **RATES), params, batch, KEYS[0]), expected)


def test_every_way_to_run_a_stack_gives_the_same_gradients():
    """Scanned and unrolled, with and without a remainder, a last layer of its own, and remat."""

    def layer(p, x, key):
        return x + jnp.cos(dropout(x @ p, 0.3, key)) @ p.T

    def last(p, x, key):
        return layer(p, x[:1], key)

    def gradients(**knobs):
        def loss(params, x):
            plain = run_stack(layer, params, x, KEYS[0], ComputeConfig(**knobs))
            return plain.sum() + run_stack(layer, params, plain, KEYS[1], ComputeConfig(**knobs), last).sum()

        return jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(params, x)

    rng = np.random.default_rng(0)
    params, x = (rng.normal(size=size).astype(np.float32) for size in ((3, 4, 8), (5, 4)))
    expected = gradients()
    for knobs in ({"unroll": 2}, {"unroll": 3, "remat": "full"}, {"remat": "dots"}):
        assert_close(gradients(**knobs), expected)


def lowered_gradient(**knobs):
    def layer(p, x, key):
        return x + jnp.cos(x @ p) @ p.T

    def loss(params, x):
        return run_stack(layer, params, x, None, ComputeConfig(**knobs)).sum()

    return jax.jit(jax.grad(loss)).lower(jnp.ones((8, 16, 2048)), jnp.ones((512, 16)))


def test_remat_saves_memory():
    none, full = (lowered_gradient(remat=remat).compile().memory_analysis() for remat in ("none", "full"))
    assert none is not None and full is not None
    assert full.temp_size_in_bytes < 0.6 * none.temp_size_in_bytes


def test_remat_of_unrolled_layers_is_kept_apart_from_the_forward_pass():
    """Without barriers XLA merges the recomputation with the forward pass, and keeps what it was to forget."""
    assert "optimization_barrier" in lowered_gradient(remat="full", unroll=8).as_text()


@trunks
def test_gradient_reaches_every_parameter_of_every_layer(family):
    model = tiny(family, **RATES)
    gradients = flatten(loss_and_gradients(model, weights(model), packed_batch(), KEYS[0])[1])
    for name, gradient in gradients.items():
        norms = np.abs(np.asarray(gradient)).reshape(len(gradient) if "/layers/" in name else 1, -1).max(-1)
        if not name.endswith("/k_bias"):  # adds the same to all logits of a query, which the softmax cancels
            assert norms.min() > 1e-4, name


@trunks
def test_dropout_follows_the_key(family):
    model, batch = tiny(family, **RATES), packed_batch()
    params = weights(model)
    first, again, other = (loss_and_gradients(model, params, batch, key) for key in (KEYS[0], KEYS[0], KEYS[1]))
    chex.assert_trees_all_equal(first, again)
    assert abs(first[0] - other[0]) > 1e-3
    chex.assert_tree_all_finite(first)


@pytest.mark.parametrize(
    ("family", "hidden", "classifier"),
    [
        ("albert", 1 + 3, 1),
        ("bert", 1 + 3 * 2, 1),
        ("deberta-v2", 1 + 3 * 3, 1),
        ("distilbert", 1 + 3, 1),
        ("electra", 1 + 3 * 2, 2),
        ("gpt2", 1 + 3 * 2, 1),
        ("llama", 1 + 3 * 2, 1),
        ("mpnet", 1 + 3 * 2, 2),
        ("roberta", 1 + 3 * 2, 2),
    ],
)
def test_dropout_acts_at_the_places_of_the_published_models(family, hidden, classifier, monkeypatch):
    """Embeddings, attention, its output (but in DistilBERT), MLP (but in ALBERT), the head after its dense and in some
    before it."""
    rates = {"dropout": 0.125, "attention_dropout": 0.25, "classifier_dropout": 0.5}
    model = tiny(family, ComputeConfig(unroll=3), **rates)
    drawn = collections.Counter()

    def counted(x, rate, key):
        drawn[rate] += rate > 0 and key is not None
        return dropout(x, rate, key)

    for module in (attention, heads, encoder, deberta, gpt2, llama):
        monkeypatch.setattr(module, "dropout", counted)
    batch = inputs(packed_batch(), model)
    jax.eval_shape(model.apply, model.shapes, batch, None)
    assert not drawn.total()  # without a key, nothing is dropped
    jax.eval_shape(model.apply, model.shapes, batch, KEYS[0])
    del drawn[0.0]
    assert drawn == {0.125: hidden, 0.25: 3, 0.5: classifier}
    if FAMILIES[family].config().classifier_dropout is None:  # falls back to the hidden rate
        drawn.clear()
        fallback = tiny(family, ComputeConfig(unroll=3), **{**rates, "classifier_dropout": None})
        jax.eval_shape(fallback.apply, model.shapes, batch, KEYS[0])
        assert drawn[0.125] == hidden + classifier


@trunks
def test_bfloat16_is_finite_and_close(family):
    batch = packed_batch()
    params = weights(tiny(family))
    exact = apply(tiny(family), params, batch)
    half = apply(tiny(family, ComputeConfig(dtype=jnp.bfloat16)), params, batch)
    assert half.dtype == jnp.float32
    assert 0 < np.abs(half - exact).max() < 0.1 * np.abs(exact).max()


@families
def test_every_parameter_names_its_axes(family):
    model = tiny(family)
    axes, shapes = flatten(model.axes), flatten(model.shapes)
    assert axes.keys() == shapes.keys()
    for name, names in axes.items():
        assert len(names) == len(shapes[name].shape), name
        assert ("layers" in names) == ("/layers/" in name or name == "trunk/attention_norm_scale"), name
        Rules().spec(names)  # raises for a name without a rule


def test_token_types_beyond_the_table_count_as_its_last():
    model = tiny("roberta", num_types=1)
    params = weights(model)
    (text,) = examples(1, seed=8)
    pair = text._replace(token_types=[0] + [1] * (len(text.tokens) - 1))
    single, both = (apply(model, params, pack([[t]], length=9, slots=1)) for t in (text, pair))
    np.testing.assert_array_equal(single, both)


def test_initialisation_follows_its_formula_and_key():
    model = tiny("bert")
    init = jax.jit(model.init, compiler_options=FAST)
    params = flatten(init(KEYS[0]))
    q = np.asarray(params["trunk/stack/layers/q"])
    assert abs(q.std() - 0.02) < 2e-3 and abs(q.mean()) < 3e-3
    assert np.abs(q[0] - q[1]).max() > 0.01  # each layer its own draw
    assert all((np.asarray(p) == 0).all() for name, p in params.items() if name.endswith("_bias"))
    assert all((np.asarray(p) == 1).all() for name, p in params.items() if name.endswith("_scale"))
    other = flatten(init(KEYS[1]))
    assert np.abs(q - other["trunk/stack/layers/q"]).max() > 0.01
    chex.assert_trees_all_equal(params, flatten(init(KEYS[0])))


def test_mistakes_in_a_model_choice_are_named():
    with pytest.raises(UserError, match=r"here: model type 'gpt9' is not supported; supported: albert, bart, bert"):
        get_family("gpt9", "here")
    with pytest.raises(UserError, match=r"'bert' has no span head; it has: classification"):
        Model(FAMILIES["bert"], FAMILIES["bert"].presets["tiny"], "span", 2).init(jax.random.key(0))
    base = FAMILIES["bert"].presets["base"]
    with pytest.raises(UserError, match=r"model\.config\.width: unknown field; BertConfig has vocab_size"):
        override(base, {"width": 3})
    with pytest.raises(UserError, match=r"model\.config\.num_layers: expected int, found '4'"):
        override(base, {"num_layers": "4"})
    with pytest.raises(UserError, match="5 attention heads do not divide the width 16"):
        tiny("roberta", num_heads=5).init(jax.random.key(0))


def test_a_family_registers_from_outside_under_a_name_of_its_own(monkeypatch):
    monkeypatch.setattr(models, "FAMILIES", dict(FAMILIES))
    mine = dataclasses.replace(FAMILIES["bert"], name="mine")
    models.register(mine)
    models.register(mine)  # an import of the module twice
    assert models.get_family("mine", "here") is mine
    with pytest.raises(UserError, match="model type 'bert' is taken; give the family another name"):
        models.register(dataclasses.replace(mine, name="bert"))
