"""Masked-LM heads of the encoders: packing, slots, tied table, sharding, and checkpoints without Transformers."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, read_golden, write_checkpoint
from helpers.tiny_models import FAMILY_SIZES, FAST, Example, assert_close, examples, pack, tiny, token_logits, weights
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import export_model
from jaxlm.models import FAMILIES, Model
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules, batch_shardings

ENCODERS = ("albert", "bert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta")
encoders = pytest.mark.parametrize("family", ENCODERS)
# Counted on the Hub's pages of bert-base-uncased, roberta-base, distilbert-base-uncased and ModernBERT-base.
PUBLISHED = {"bert": 109_514_298, "roberta": 124_697_433, "distilbert": 66_985_530, "modernbert": 149_655_232}


@functools.cache
def masked(family: str, compute: ComputeConfig | None = None) -> Model:
    model = tiny(family)
    return Model(model.family, model.config, "masked_lm", 0, compute or ComputeConfig())


def everywhere(batch):
    """The batch without its slots: a head then answers at every position."""
    return {name: value for name, value in batch.items() if name != "slot_positions"}


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_parameter_counts(family):
    record = FAMILIES[family]
    assert Model(record, record.presets["base"], "masked_lm", 0).num_parameters == PUBLISHED[family]


# The head and the trunk are the same modules in all encoders; ELECTRA's table is narrower than its states.


def test_packed_texts_give_the_logits_they_give_alone_and_slots_those_of_their_positions():
    model = masked("electra")
    params = weights(model)
    texts = examples(4, seed=2, longest=7)
    batch = pack([texts[:3], texts[3:], []], length=21, slots=3)
    packed = token_logits(model, params, everywhere(batch))
    chex.assert_shape(packed, (3, 21, 64))
    alone = token_logits(model, params, everywhere(pack([[t] for t in texts[:3]], length=21, slots=3)))
    start = 0
    for row, text in zip(alone, texts[:3], strict=True):
        end = start + len(text.tokens)
        np.testing.assert_allclose(packed[0, start:end], row[: end - start], atol=1e-5, rtol=0)
        start = end
    assert np.ptp(packed[0, :start], axis=0).min() > 0.05  # positions are told apart at all

    batch["slot_positions"] = np.asarray([[1, 2, 5], [0, 1, 0], [0, 0, 0]], np.int32)
    at_slots = token_logits(model, params, batch)
    chex.assert_shape(at_slots, (3, 3, 64))
    expected = np.take_along_axis(packed, batch["slot_positions"][..., None], axis=1)
    np.testing.assert_allclose(at_slots, expected, atol=1e-5, rtol=0)


def loss_and_gradients(model: Model, params, batch):
    def loss(params, batch):
        logits = model.apply(params, batch).logits()
        return (jnp.sin(logits) * np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)).sum()

    arrays = {name: batch[name] for name in model.family.inputs}
    return jax.device_get(jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(params, arrays))


def test_gradients_reach_the_head_and_through_it_every_row_of_the_token_table_on_every_device():
    batch = pack([[text] for text in examples(8, seed=6)], length=9, slots=1)
    params = weights(masked("electra"))
    loss, gradients = loss_and_gradients(masked("electra"), params, batch)
    unread = np.setdiff1d(np.arange(64), batch["tokens"])
    assert np.abs(gradients["trunk"]["tokens"][unread]).max(-1).min() > 1e-4
    assert gradients["head"].keys() == {
        "transform", "transform_bias", "transform_norm_scale", "transform_norm_bias", "vocab_bias"
    }  # fmt: skip
    for name, gradient in gradients["head"].items():
        assert np.abs(gradient).max() > 1e-3, name

    rules = Rules(make_mesh("fsdp_tp", data=2, fsdp=2, tensor=2))
    model = masked("electra", ComputeConfig(rules=rules))
    placed = jax.tree.map(lambda p, s: jax.device_put(p, s.sharding), params, model.shapes)
    arrays = jax.device_put(batch, batch_shardings(batch, rules))
    assert_close(loss_and_gradients(model, placed, arrays), (loss, gradients))


def test_an_untrained_model_finds_all_tokens_about_as_likely():
    model = masked("electra")
    params = jax.jit(model.init, compiler_options=FAST)(jax.random.key(0, impl="rbg"))
    batch = pack([examples(3, seed=7, longest=7), [], []], length=21, slots=3)
    surprise = -np.asarray(jax.nn.log_softmax(token_logits(model, params, everywhere(batch))))
    assert abs(surprise.mean() - math.log(64)) < 0.1


@encoders
def test_golden_logits(family, tmp_path):
    golden = read_golden(f"{family}-masked_lm")
    write_checkpoint(tmp_path, golden["config"], "masked_lm")
    model, imported = load_checkpoint(tmp_path, "masked_lm")
    assert imported.initialized == imported.ignored == ()
    texts = [Example(**example) for example in golden["examples"]]
    batch = pack([texts[:2], texts[2:]], length=27, slots=3, pad_id=model.config.pad_id)
    logits = token_logits(model, imported.params, everywhere(batch))
    last = [logits[r][batch["segment_ids"][r] == s + 1][-1] for r, s in ((0, 0), (0, 1), (1, 0))]
    np.testing.assert_allclose(last, golden["logits"], atol=1e-4, rtol=0)


# What older files, and those of other frameworks, hold beside a head that is tied to the token table.
DUPLICATES = {
    "albert": ("predictions.decoder.weight", "predictions.decoder.bias"),
    "bert": ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias", "cls.seq_relationship.weight"),
    "deberta-v2": ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
    "distilbert": ("vocab_projector.weight",),
    "electra": ("generator_lm_head.weight",),
    "modernbert": ("decoder.weight",),
    "mpnet": ("lm_head.decoder.weight", "lm_head.decoder.bias"),
    "roberta": ("lm_head.decoder.weight", "lm_head.decoder.bias"),
    "xlm-roberta": ("lm_head.decoder.weight", "lm_head.decoder.bias"),
}


def hold_twice(directory: Path, family: str) -> None:
    """Writes the token table and the bias a second time, as the decoder's."""
    tensors = load_file(directory / "model.safetensors")
    table = next(
        value for key, value in tensors.items() if key.endswith(("word_embeddings.weight", "tok_embeddings.weight"))
    )
    bias = next(
        (tensors[key] for key in ("cls.predictions.bias", "lm_head.bias", "predictions.bias") if key in tensors), table
    )
    for key in DUPLICATES[family]:
        if "seq_relationship" not in key:
            tensors[key] = (bias if key.endswith("bias") else table).copy()
    save_file(tensors, directory / "model.safetensors")


@encoders
def test_checkpoints_survive_the_round_trip_and_lend_their_trunk(family, tmp_path):
    record = FAMILIES[family]
    source, exported = tmp_path / "in", tmp_path / "out"
    config = {"model_type": family, **record.to_hf(tiny(family if family in FAMILY_SIZES else "roberta").config)}
    write_checkpoint(source, config, "masked_lm", [("cls.seq_relationship.weight", (2, 16))] * (family == "bert"))
    hold_twice(source, family)
    model, imported = load_checkpoint(source, "masked_lm")
    assert imported.initialized == ()
    assert set(imported.ignored) == set(DUPLICATES[family])
    export_model(exported, model, imported.params)
    assert_same_tensors(source, exported, without=DUPLICATES[family])
    written = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"][0].endswith("ForMaskedLM")

    _, classifier = load_checkpoint(exported, "classification", 2)
    assert all(name.startswith("head/") for name in classifier.initialized)
    chex.assert_trees_all_equal(classifier.params["trunk"], imported.params["trunk"])

    # Another matrix than the token table: refused where config.json ties them, else read as it stands.
    key = next(key for key in DUPLICATES[family] if key.endswith("weight"))
    tensors = load_file(source / "model.safetensors")
    tensors[key][5, 7] += 1e-3
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(
        UserError, match=rf"{key} and \S+(word|tok)_embeddings.weight differ, but config.json ties them"
    ):
        load_checkpoint(source, "masked_lm")
    load_checkpoint(source, "token_classification", 2)  # does not read it
    (source / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}), encoding="utf-8")
    _, own = load_checkpoint(source, "masked_lm")
    np.testing.assert_array_equal(own.params["head"]["unembed"], tensors[key])
    assert own.initialized == ()


def test_a_decoder_of_its_own_makes_the_logits_and_is_exported(tmp_path):
    config = {"model_type": "roberta", **FAMILIES["roberta"].to_hf(tiny("roberta", tied=False).config)}
    write_checkpoint(tmp_path / "in", config, "masked_lm")
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    model, imported = load_checkpoint(tmp_path / "in", "masked_lm")
    assert imported.initialized == imported.ignored == ()
    batch = everywhere(pack([examples(3, seed=2, longest=7)], length=21, slots=3))
    logits = token_logits(model, imported.params, batch)
    head = imported.params["head"]
    doubled = {
        **imported.params,
        "head": {**head, "unembed": 2 * head["unembed"], "unembed_bias": 2 * head["unembed_bias"]},
    }
    np.testing.assert_allclose(token_logits(model, doubled, batch), 2 * logits, rtol=1e-5, atol=1e-5)
    export_model(tmp_path / "out", model, imported.params)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    for key, value in tensors.items():
        np.testing.assert_array_equal(written[key], value, err_msg=key)
    # Files of Transformers 4 hold the bias under its other name alone; today's read it, too.
    assert written.keys() - tensors.keys() == {"lm_head.bias"}
    np.testing.assert_array_equal(written["lm_head.bias"], tensors["lm_head.decoder.bias"])
    del written["lm_head.decoder.bias"]
    save_file(written, tmp_path / "out" / "model.safetensors")
    _, older = load_checkpoint(tmp_path / "out", "masked_lm")
    np.testing.assert_array_equal(older.params["head"]["unembed_bias"], head["unembed_bias"])
