"""ELECTRA's pretraining network: shared embeddings, samples, what the discriminator reads, checkpoints."""

from __future__ import annotations

import functools
import json
import logging
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, read_golden, write_checkpoint
from helpers.tiny_models import FAST, Example, assert_close, examples, pack, tiny, weights
from helpers.torch_reference import random_config, randomise, strict_load, torch_inputs

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import export_model
from jaxlm.models import FAMILIES, Model, electra
from jaxlm.models.base import flatten, override
from jaxlm.nn.heads import FactoredLogits
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings

MASK = 3
KEYS = [jax.random.key(seed, impl="rbg") for seed in (0, 1)]


@functools.cache
def network(compute: ComputeConfig | None = None, **changes) -> Model:
    config = override(tiny("electra").config, {"generator_size": 0.5, **changes})
    return Model(FAMILIES["electra"], config, "replaced_tokens", 0, compute or ComputeConfig())


def masked_batch(texts: list[list[Example]], length: int = 21, slots: int = 4) -> dict[str, np.ndarray]:
    """The last two tokens of every text are asked for, the last one left as it is; other slots are empty."""
    batch = pack(texts, length, slots)
    batch["original_tokens"] = batch["tokens"].copy()
    batch["slot_positions"][:], batch["weights"][:] = 0, 0
    for r, row in enumerate(texts):
        used = 0
        for s, _ in enumerate(row):
            columns = np.flatnonzero(batch["segment_ids"][r] == s + 1)
            batch["tokens"][r, columns[-2]] = MASK
            for column in (columns[-2], columns[-1])[: slots - used]:
                batch["slot_positions"][r, used], batch["weights"][r, used] = column, 1
                used += 1
    return batch


def two_rows() -> dict[str, np.ndarray]:
    a, b, c = examples(3, seed=1, longest=7)
    return masked_batch([[a, b], [c]])


def inputs(batch) -> dict[str, np.ndarray]:
    names = ("tokens", "segment_ids", "positions", "token_types", "slot_positions", "original_tokens", "weights")
    return {name: batch[name] for name in names if name in batch}


_compiled: dict[Any, Any] = {}


def run(model: Model, params, batch, key=None) -> electra.ReplacedTokensOutputs:
    compiled = _compiled.setdefault(id(model), jax.jit(model.apply, compiler_options=FAST))
    return jax.device_get(compiled(params, inputs(batch), key))


def certain(params, token: int):
    """Parameters whose generator always says `token`."""
    head = params["generator"]["head"]
    bias = np.full_like(head["vocab_bias"], -1e4)
    bias[token] = 1e4
    return {**params, "generator": {**params["generator"], "head": {**head, "vocab_bias": bias}}}


@pytest.mark.parametrize(
    ("preset", "size", "sizes"),
    [("small", 0.25, (64, 1, 256)), ("base", 1 / 3, (256, 4, 1024)), ("large", 0.25, (256, 4, 1024))],
)
def test_generator_sizes_are_the_published_ones(preset, size, sizes):
    config = override(FAMILIES["electra"].presets[preset], {"generator_size": size})
    small = electra.generator_config(config)
    assert (small.embed_dim, small.num_heads, small.mlp_dim) == sizes
    assert (small.num_layers, small.table_dim) == (config.num_layers, config.table_dim)


def test_generator_heads_divide_its_width_and_sizes_out_of_range_are_refused():
    config = tiny("electra").config
    small = electra.generator_config(override(config, {"embed_dim": 20, "num_heads": 5, "generator_size": 0.7}))
    assert (small.embed_dim, small.num_heads) == (14, 2)  # 4 would be the share, and divides no 14
    assert electra.generator_config(override(config, {"num_heads": 1})).num_heads == 1
    for size in (0.0, -1.0, 1.5):
        with pytest.raises(UserError, match=rf"model\.config\.generator_size: expected a share .* found {size}"):
            network(generator_size=size).init(jax.random.key(0))


def test_generator_has_its_own_projection_stack_and_head_and_no_tables():
    shapes = network().shapes
    assert shapes.keys() == {"trunk", "head", "generator"}
    assert shapes["generator"]["trunk"].keys() == {"project", "project_bias", "stack"} - (
        {"project", "project_bias"} if network().config.table_dim == 8 else set()  # as wide as the tables
    )
    assert network(generator_size=1.0).shapes["generator"]["trunk"].keys() == {"project", "project_bias", "stack"}
    assert shapes["generator"]["trunk"]["stack"]["layers"]["up"].shape == (3, 8, 16)
    assert shapes["generator"]["head"]["transform"].shape == (8, 8)
    axes = flatten(network().axes)
    assert axes.keys() == flatten(shapes).keys()
    assert axes["generator/trunk/stack/layers/up"] == ("layers", "embed", "mlp")


def test_samples_follow_the_generators_distribution(monkeypatch):
    """Where only two slots are drawn at once; all at once, they are the same."""
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(64, 5, 3)), rng.normal(size=(7, 3))
    states[1:] = states[:1]
    bias = rng.normal(size=7)
    probs = np.exp(states[0] @ table.T + bias)
    probs /= probs.sum(-1, keepdims=True)
    factors = FactoredLogits(*(jnp.asarray(x, jnp.float32) for x in (states, table, bias)))
    whole = jax.jit(electra._sample, compiler_options=FAST)(factors, jax.random.key(0))
    monkeypatch.setattr(electra, "MAX_LOGITS", 64 * 7 * 2)
    sample = jax.jit(lambda *args: electra._sample(*args), compiler_options=FAST)
    np.testing.assert_array_equal(whole, sample(factors, jax.random.key(0)))
    draws = [np.asarray(sample(factors, jax.random.key(seed))) for seed in range(60)]
    drawn = np.stack(draws).reshape(-1, 5)  # 3840 of each slot
    for slot in range(5):
        counts = np.bincount(drawn[:, slot], minlength=7)
        statistic = ((counts - len(drawn) * probs[slot]) ** 2 / (len(drawn) * probs[slot])).sum()
        assert statistic < 27.9  # chi-squared with 6 degrees of freedom, p = 1e-4
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.07  # slots draw apart


def test_samples_stand_at_the_slots_with_weight_alone_and_the_discriminator_reads_them():
    model, batch = network(), two_rows()
    token = int(batch["original_tokens"][0, batch["slot_positions"][0, 0]])  # the generator is right once
    assert not batch["weights"][1, 3] and batch["slot_positions"][1, 0] > 0  # an empty slot points at column 0
    params = certain(weights(model), token)
    outputs = run(model, params, batch)
    filled = batch["original_tokens"].copy()
    for r, s in np.argwhere(batch["weights"] > 0):
        filled[r, batch["slot_positions"][r, s]] = token
    np.testing.assert_array_equal(outputs.replaced, filled != batch["original_tokens"])
    assert outputs.replaced.sum() == (batch["weights"] > 0).sum() - 1
    chex.assert_type(outputs.discriminator, jnp.float32)

    trunk = model.family.trunk(model.config, model.compute)
    reads = {name: batch[name] for name in ("segment_ids", "positions", "token_types")}
    states = jax.jit(trunk.apply, compiler_options=FAST)({"params": params["trunk"]}, tokens=filled, **reads)
    head = params["head"]
    hidden = jax.nn.gelu(states @ head["detect"] + head["detect_bias"][None, None], approximate=False)
    expected = (hidden @ head["detect_out"])[..., 0] + head["detect_out_bias"][None]
    np.testing.assert_allclose(outputs.discriminator, expected, atol=1e-4, rtol=0)


def test_the_generator_answers_for_the_masked_tokens():
    """Its logits are those of a masked LM of its sizes over the shared tables."""
    model, batch = network(), two_rows()
    params = weights(model)
    small = Model(model.family, electra.generator_config(model.config), "masked_lm", 0)
    shared = {
        name: value for name, value in params["trunk"].items() if name not in ("stack", "project", "project_bias")
    }
    own = {"trunk": {**shared, **params["generator"]["trunk"]}, "head": params["generator"]["head"]}
    chex.assert_trees_all_equal_shapes(own, small.shapes)
    arrays = {name: batch[name] for name in small.family.inputs}
    expected = jax.jit(lambda p, b: small.apply(p, b).logits(), compiler_options=FAST)(own, arrays)
    generator = run(model, params, batch).generator
    chex.assert_shape(generator.states, (2, 4, 8))
    np.testing.assert_allclose(generator.logits(), expected, atol=1e-5, rtol=0)


def test_packed_texts_give_the_logits_they_give_alone():
    model = network()
    params = certain(weights(model), 11)
    texts = examples(3, seed=2, longest=6)
    packed = run(model, params, masked_batch([texts[:2], texts[2:]]))
    alone = run(model, params, masked_batch([[texts[0]], [texts[1]]]))
    first, second = (len(text.tokens) for text in texts[:2])
    together = packed.discriminator[0]
    np.testing.assert_allclose(together[:first], alone.discriminator[0, :first], atol=1e-5, rtol=0)
    np.testing.assert_allclose(together[first : first + second], alone.discriminator[1, :second], atol=1e-5, rtol=0)
    own = np.concatenate([alone.generator.states[0, :2], alone.generator.states[1, :2]])
    np.testing.assert_allclose(packed.generator.states[0], own, atol=1e-5, rtol=0)


def losses_and_gradients(model: Model, params, batch):
    """Of a loss of the generator's logits, and of one of the discriminator's."""

    def losses(params, batch):
        outputs = model.apply(params, batch)
        generator = (jnp.sin(outputs.generator.logits()).sum(-1) * batch["weights"]).sum()
        discriminator = (jnp.sin(outputs.discriminator) * (batch["segment_ids"] > 0).astype(jnp.float32)).sum()
        return {"generator": generator, "discriminator": discriminator}

    def both(params, batch):
        values, pull = jax.vjp(functools.partial(losses, batch=batch), params)
        chosen = {name: {other: jnp.float32(other == name) for other in values} for name in values}
        return values, {name: pull(one)[0] for name, one in chosen.items()}

    return jax.device_get(jax.jit(both, compiler_options=FAST)(params, inputs(batch)))


@pytest.mark.slow
def test_each_part_trains_itself_and_both_train_the_embeddings_on_every_device():
    """No gradient flows through the samples."""
    batch = masked_batch([[text] for text in examples(8, seed=6)], length=9, slots=2)
    params = weights(network(generator_size=1.0))
    expected = losses_and_gradients(network(generator_size=1.0), params, batch)
    norms = {part: {name: np.abs(g).max() for name, g in flatten(tree).items()} for part, tree in expected[1].items()}
    shared = {f"trunk/{name}" for name in ("tokens", "positions", "types", "embed_norm_scale", "embed_norm_bias")}
    for name in norms["generator"]:
        own = "generator" if name.startswith("generator/") else "discriminator"
        other = "discriminator" if own == "generator" else "generator"
        if not name.endswith("/k_bias"):  # the softmax cancels it
            assert norms[own][name] > 1e-4, name
        assert (norms[other][name] > 1e-4) == (name in shared), name

    rules = Rules(make_mesh("fsdp_tp", data=2, fsdp=2, tensor=2))
    model = network(ComputeConfig(rules=rules), generator_size=1.0)
    placed = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
    arrays = jax.device_put(inputs(batch), batch_shardings(inputs(batch), rules))
    assert_close(losses_and_gradients(model, placed, arrays), expected)


def test_noise_and_dropout_follow_the_key():
    model, batch = network(), two_rows()
    params = weights(model)
    plain, again = run(model, params, batch), run(model, params, batch)
    chex.assert_trees_all_equal(plain, again)
    first, same, other = (run(model, params, batch, key) for key in (KEYS[0], KEYS[0], KEYS[1]))
    chex.assert_trees_all_equal(first, same)
    assert np.abs(first.generator.states - other.generator.states).max() > 1e-3
    still = network(dropout=0.0, attention_dropout=0.0)
    first, other = (run(still, params, batch, key) for key in KEYS)
    np.testing.assert_allclose(first.generator.states, other.generator.states, atol=1e-6)
    np.testing.assert_allclose(plain.generator.states, other.generator.states, atol=1e-6)
    assert np.abs(first.discriminator - other.discriminator).max() > 1e-3  # other samples


def test_bfloat16_is_close():
    params, batch = certain(weights(network()), 11), two_rows()
    exact, half = run(network(), params, batch), run(network(ComputeConfig(dtype=jnp.bfloat16)), params, batch)
    assert half.discriminator.dtype == jnp.float32 and half.generator.states.dtype == jnp.bfloat16
    assert 0 < np.abs(half.discriminator - exact.discriminator).max() < 0.1 * np.abs(exact.discriminator).max()


def unasked(texts: list[Example], length: int = 27) -> dict[str, np.ndarray]:
    """Texts of which nothing is masked: the discriminator reads them as they are."""
    rows = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    batch = masked_batch(rows, length)
    batch["weights"][:] = 0
    return batch


def test_golden_logits_of_the_discriminator(tmp_path):
    golden = read_golden("electra-replaced_tokens")
    write_checkpoint(tmp_path, golden["config"], "replaced_tokens")
    model, imported = load_checkpoint(tmp_path, "replaced_tokens")
    texts = [Example(**example) for example in golden["examples"]]
    batch = unasked(texts)
    outputs = run(model, imported.params, batch)
    assert not outputs.replaced.any()
    for s, expected in enumerate(golden["logits"]):
        ours = outputs.discriminator[0][batch["segment_ids"][0] == s + 1]
        np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)


def test_exports_hold_the_discriminator_and_the_generator_is_drawn_afresh(tmp_path, caplog):
    model = network()
    params = weights(model)
    export_model(tmp_path, model, params)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["ElectraForPreTraining"]
    assert "generator_size" not in config

    with caplog.at_level(logging.INFO, "jaxlm"):
        again, imported = load_checkpoint(tmp_path, "replaced_tokens")
    assert again.config == override(model.config, {"generator_size": 0.25})
    for part in ("trunk", "head"):
        chex.assert_trees_all_equal(imported.params[part], params[part])
    assert imported.ignored == ()
    assert set(imported.initialized) == {name for name in flatten(again.shapes) if name.startswith("generator/")}
    assert "generator/head/transform" in caplog.text

    _, classifier = load_checkpoint(tmp_path, "classification", 2)
    chex.assert_trees_all_equal(classifier.params["trunk"], params["trunk"])
    assert all(name.startswith("head/") for name in classifier.initialized)
    assert all(name.startswith("discriminator_predictions.") for name in classifier.ignored)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(7))
def test_import_agrees_with_transformers_and_export_is_bit_equal(seed, tmp_path, transformers):
    import torch

    theirs = randomise(transformers.ElectraForPreTraining(random_config("electra", seed)))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "replaced_tokens")
    assert imported.ignored == () and all(name.startswith("generator/") for name in imported.initialized)
    texts = examples(6, seed=seed)
    batch = unasked(texts)
    ours = run(model, imported.params, batch).discriminator
    with torch.no_grad():
        expected = theirs(**torch_inputs(theirs, texts)).logits.numpy()
    for i, text in enumerate(texts):
        row = ours[i // 3][batch["segment_ids"][i // 3] == i % 3 + 1]
        np.testing.assert_allclose(row, expected[i, : len(text.tokens)], atol=1e-4, rtol=0)
    assert np.ptp(expected) > 1e-2

    export_model(tmp_path / "out", model, imported.params)
    strict_load(tmp_path / "out", "AutoModelForPreTraining")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
