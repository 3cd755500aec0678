"""Checkpoints of T5 and mT5: config.json, golden logits, round trips, and Transformers beside us."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, write_checkpoint
from helpers.t5_models import model_of, of_segments, versions
from helpers.text_pairs import pack_pairs, pairs, torch_pair_logits
from helpers.tiny_models import formula_tensor, token_logits
from helpers.torch_reference import randomise, strict_load
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import export_model
from jaxlm.models import FAMILIES
from jaxlm.models.base import override
from jaxlm.nn.relative_positions import relative_buckets


def test_what_config_json_says_of_the_versions():
    read = FAMILIES["t5"].from_hf
    assert read({}) == FAMILIES["t5"].presets["small"]
    for said, tied in (
        ({"tie_word_embeddings": False}, False),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),  # Transformers 5, version 1.1
        ({"tie_word_embeddings": True, "scale_decoder_outputs": True}, True),
    ):
        assert read(said).tied is tied
    assert (read({"feed_forward_proj": "gated-gelu"}).activation, read({"feed_forward_proj": "gated-silu"}).gated) == (
        "gelu_new", True
    )  # fmt: skip
    assert FAMILIES["mt5"].from_hf({"tie_word_embeddings": True}) == FAMILIES["mt5"].presets["small"]
    config = override(model_of("v1_1").config, {"num_decoder_layers": 5})
    assert read(FAMILIES["t5"].to_hf(config)) == config


@versions
def test_checkpoints_survive_the_round_trip(version, tmp_path):
    config = {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    config |= FAMILIES["t5"].to_hf(model_of(version).config)
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    copies.append("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight")
    copies += ["lm_head.weight"] if version == "v1_0" else []
    write_checkpoint(tmp_path / "in", config, "seq2seq_lm", [(key, (64, 16)) for key in copies])
    tensors = load_file(tmp_path / "in" / "model.safetensors")
    tied = {key: tensors["shared.weight"].copy() for key in copies if "relative" not in key}
    save_file(tensors | tied, tmp_path / "in" / "model.safetensors")
    model, imported = load_checkpoint(tmp_path / "in", "seq2seq_lm")
    assert model.config == model_of(version).config
    assert imported.initialized == () and set(imported.ignored) == set(copies)
    export_model(tmp_path / "out", model, imported.params)
    assert_same_tensors(tmp_path / "in", tmp_path / "out", without=copies)
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert written["tie_word_embeddings"] is (version == "v1_0") and written["is_encoder_decoder"] is True
    assert ("lm_head.weight" in load_file(tmp_path / "out/model.safetensors")) is (version == "v1_1")
    tied["decoder.embed_tokens.weight"] = tied["decoder.embed_tokens.weight"] * 2
    save_file(tensors | tied, tmp_path / "in" / "model.safetensors")
    with pytest.raises(UserError, match=r"decoder\.embed_tokens\.weight and shared\.weight differ"):
        load_checkpoint(tmp_path / "in", "seq2seq_lm")


def test_a_head_that_transformers_left_out_is_the_token_table(tmp_path):
    config = {"model_type": "t5", **FAMILIES["t5"].to_hf(model_of("v1_1").config)}
    write_checkpoint(tmp_path, config, "seq2seq_lm")
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    _, imported = load_checkpoint(tmp_path, "seq2seq_lm")
    assert imported.initialized == imported.ignored == ()
    np.testing.assert_array_equal(imported.params["head"]["unembed"], imported.params["trunk"]["tokens"])


# From here on, Transformers runs beside us.


def random_config(name: str, seed: int) -> Any:
    """A random small Transformers config: version 1.0 where `seed` is even, else 1.1; mT5 is of the latter kind."""
    from transformers import AutoConfig

    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    new = seed % 2 == 1 or name == "mt5"
    return AutoConfig.for_model(
        name, vocab_size=pick(64, 71), d_model=pick(8, 15, 24), d_kv=pick(4, 6, 7), d_ff=pick(8, 20, 33),
        num_layers=pick(1, 2, 3), num_decoder_layers=pick(1, 2, 4), num_heads=pick(1, 2, 3),
        relative_attention_num_buckets=pick(4, 8, 12, 32), relative_attention_max_distance=pick(18, 20, 128),
        layer_norm_epsilon=pick(1e-6, 1e-2), dropout_rate=pick(0.0, 0.1), decoder_start_token_id=pick(0, 2),
        feed_forward_proj=pick("gated-gelu", "gated-silu") if new else pick("relu", "gelu"),
        **({"tie_word_embeddings": not new} if name == "t5" else {}),
    )  # fmt: skip


def random_model(transformers, name: str, seed: int, *, tied: bool = False):
    """With random weights; of version 1.1 with a head of its own unless `tied`."""
    import torch

    config = random_config(name, seed)
    theirs = randomise(transformers.AutoModelForSeq2SeqLM.from_config(config))
    if not getattr(config, "scale_decoder_outputs", False) and not tied:
        own = formula_tensor("lm_head.weight", (config.vocab_size, config.d_model))
        theirs.lm_head.weight = torch.nn.Parameter(torch.from_numpy(own))
    return theirs


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "seed"), [*(("t5", seed) for seed in range(8)), *(("mt5", seed) for seed in range(3))]
)
def test_import_agrees_and_export_is_bit_equal(name, seed, tmp_path, transformers):
    theirs = random_model(transformers, name, seed)
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "seq2seq_lm")
    assert imported.initialized == imported.ignored == ()
    texts = pairs(6, seed=seed, start=theirs.config.decoder_start_token_id)
    batch = pack_pairs([texts[:3], texts[3:]])
    expected = torch_pair_logits(theirs, texts)
    for ours, reference in zip(of_segments(token_logits(model, imported.params, batch), batch), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4, rtol=0)
    assert np.ptp(np.concatenate(expected), axis=0).min() > 1e-2

    export_model(tmp_path / "out", model, imported.params)
    back = strict_load(tmp_path / "out", "AutoModelForSeq2SeqLM")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    for again, reference in zip(torch_pair_logits(back, texts), expected, strict=True):
        np.testing.assert_allclose(again, reference, atol=1e-5, rtol=0)
    beside = {"_name_or_path", "dtype", "architectures", "id2label", "label2id", "problem_type"}
    described = theirs.config.to_dict().keys() - beside
    assert {k: back.config.to_dict()[k] for k in described} == {k: theirs.config.to_dict()[k] for k in described}
    assert back.config.architectures == [type(theirs).__name__]


@pytest.mark.parity
def test_a_tied_head_that_is_not_scaled_agrees_too(tmp_path, transformers):
    theirs = random_model(transformers, "t5", 1, tied=True)
    theirs.save_pretrained(tmp_path / "in")
    assert "lm_head.weight" not in load_file(tmp_path / "in/model.safetensors")
    model, imported = load_checkpoint(tmp_path / "in", "seq2seq_lm")
    texts = pairs(3, seed=1)
    batch = pack_pairs([texts])
    ours = of_segments(token_logits(model, imported.params, batch), batch)
    for one, reference in zip(ours, torch_pair_logits(theirs, texts), strict=True):
        np.testing.assert_allclose(one, reference, atol=1e-4, rtol=0)
    export_model(tmp_path / "out", model, imported.params)
    back = strict_load(tmp_path / "out", "AutoModelForSeq2SeqLM")
    for one, reference in zip(ours, torch_pair_logits(back, texts), strict=True):
        np.testing.assert_allclose(one, reference, atol=1e-4, rtol=0)


@pytest.mark.parity
def test_buckets_are_those_of_transformers(transformers):
    import torch

    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    distances = np.arange(-3000, 3001)
    for num_buckets, max_distance in ((32, 128), (32, 100), (4, 128), (12, 18), (64, 1000), (9, 50)):
        for bidirectional in (True, False):
            settings = {"num_buckets": num_buckets, "max_distance": max_distance, "bidirectional": bidirectional}
            expected = theirs(torch.from_numpy(distances), **settings).numpy()
            np.testing.assert_array_equal(relative_buckets(distances, **settings), expected, err_msg=str(settings))


@pytest.mark.parity
@pytest.mark.parametrize("name", ["t5", "mt5"])
def test_published_counts_are_those_of_transformers(name, transformers):
    import torch

    record = FAMILIES[name]
    for preset, config in record.presets.items():
        theirs = transformers.AutoConfig.for_model(name, **record.to_hf(config))
        with torch.device("meta"):
            model = transformers.AutoModelForSeq2SeqLM.from_config(theirs)
        count = sum(p.numel() for p in model.parameters())
        if (
            not config.tied
        ):  # Transformers 5 ties every new model's head, the published checkpoints have one of their own
            count += config.vocab_size * config.embed_dim
        assert count == record.published[preset], preset
