"""Checkpoints of BART, mBART, Marian and Pegasus: config.json, round trips, and Transformers beside us."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, write_checkpoint
from helpers.t5_models import of_segments
from helpers.text_pairs import pack_pairs, pairs, torch_pair_logits
from helpers.tiny_models import FAST, tiny, token_logits
from helpers.torch_reference import randomise, strict_load
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import export_model
from jaxlm.models import FAMILIES
from jaxlm.models.bart import sinusoids
from jaxlm.models.base import override
from jaxlm.objectives.language_model import language_model_loss

NAMES = ("bart", "mbart", "marian", "pegasus")


def test_what_config_json_says():
    for name in NAMES:
        record = FAMILIES[name]
        for config in (*record.presets.values(), override(tiny(name).config, {"num_decoder_layers": 2})):
            assert record.from_hf(record.to_hf(config)) == config
    marian = FAMILIES["marian"].from_hf({})
    assert (marian.pad_id, marian.decoder_start_id, marian.eos_id, marian.bos_id) == (58100, 58100, 0, None)
    assert (FAMILIES["pegasus"].from_hf({}).decoder_start_id, FAMILIES["mbart"].from_hf({}).decoder_start_id) == (0, 2)
    for said, message in (
        ({"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings=false is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=false is not supported; expected one token table"),
        ({"decoder_vocab_size": 7}, "decoder_vocab_size=7 is not supported; expected vocab_size's 58101"),
        ({"activation_function": "mish"}, "activation_function='mish' is not supported"),
        ({"encoder_attention_heads": 7}, "7 attention heads do not divide the width 1024"),
    ):
        with pytest.raises(UserError, match=message):
            FAMILIES["marian"].from_hf(said)


@pytest.mark.parametrize("name", [pytest.param("bart", marks=pytest.mark.slow), "pegasus"])
def test_checkpoints_survive_the_round_trip(name, tmp_path):
    config = {"model_type": name, **FAMILIES[name].to_hf(tiny(name).config)}
    copies = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"]
    write_checkpoint(tmp_path / "in", config, "seq2seq_lm", [(key, (64, 16)) for key in copies])
    path = tmp_path / "in/model.safetensors"
    tensors = load_file(path)
    assert tensors["final_logits_bias"].shape == (1, 64)
    tensors |= {key: tensors["model.shared.weight"].copy() for key in copies}
    positions = [f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder")]
    fixed = {key: sinusoids(24, 16) for key in positions} if name == "pegasus" else {}
    tensors |= fixed
    save_file(tensors, path)
    model, imported = load_checkpoint(tmp_path / "in", "seq2seq_lm")
    assert model.config == tiny(name).config
    assert imported.initialized == () and set(imported.ignored) == {*copies, *fixed}
    export_model(tmp_path / "out", model, imported.params)
    assert_same_tensors(tmp_path / "in", tmp_path / "out", without=copies)
    written = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert written["is_encoder_decoder"] is True and written["decoder_layers"] == 3
    if name == "pegasus":
        save_file(tensors | {positions[0]: tensors[positions[0]] * 2}, path)
        with pytest.raises(UserError, match=r"embed_positions\.weight"):
            load_checkpoint(tmp_path / "in", "seq2seq_lm")


# From here on, Transformers runs beside us.


def random_config(name: str, seed: int) -> Any:
    """A random small Transformers config."""
    from transformers import AutoConfig

    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    width, vocab = pick(12, 24), pick(64, 71)
    return AutoConfig.for_model(
        name, vocab_size=vocab, d_model=width, encoder_layers=pick(1, 2, 3), decoder_layers=pick(1, 2, 4),
        encoder_attention_heads=pick(1, 2, 3), decoder_attention_heads=pick(1, 2, 3), encoder_ffn_dim=pick(8, 20, 33),
        decoder_ffn_dim=pick(8, 20, 33), max_position_embeddings=pick(24, 30), init_std=pick(0.02, 0.5),
        activation_function=pick("relu", "gelu", "swish", "gelu_new"), scale_embedding=bool(pick(0, 1)),
        dropout=pick(0.0, 0.1), attention_dropout=pick(0.0, 0.1), activation_dropout=pick(0.0, 0.1),
        encoder_layerdrop=pick(0.0, 0.1), decoder_layerdrop=pick(0.0, 0.1), pad_token_id=pick(0, 1),
        decoder_start_token_id=pick(0, 2), eos_token_id=pick(1, 2), forced_eos_token_id=pick(1, None),
    )  # fmt: skip


def random_model(transformers, name: str, seed: int):
    import torch

    theirs = randomise(transformers.AutoModelForSeq2SeqLM.from_config(random_config(name, seed)))
    for stack in (theirs.model.encoder, theirs.model.decoder):
        if hasattr(stack.embed_positions, "create_weight"):
            stack.embed_positions.weight = torch.nn.Parameter(stack.embed_positions.create_weight(), False)
    return theirs


@pytest.mark.parity
@pytest.mark.parametrize(("name", "seed"), [*zip(NAMES, range(4), strict=True)])
def test_import_agrees_and_export_is_bit_equal(name, seed, tmp_path, transformers):
    import torch

    theirs = random_model(transformers, name, seed)
    theirs.save_pretrained(tmp_path / "in")
    fixed = [key for key in load_file(tmp_path / "in/model.safetensors") if "embed_positions" in key]
    fixed = fixed if name in ("marian", "pegasus") else []
    model, imported = load_checkpoint(tmp_path / "in", "seq2seq_lm")
    assert imported.initialized == () and list(imported.ignored) == fixed
    texts = pairs(6, seed=seed, start=theirs.config.decoder_start_token_id)
    batch = pack_pairs([texts[:3], texts[3:]])
    expected = torch_pair_logits(theirs, texts)
    for ours, reference in zip(of_segments(token_logits(model, imported.params, batch), batch), expected, strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-4, rtol=0)
    assert np.ptp(np.concatenate(expected), axis=0).min() > 1e-2

    if name == "bart":  # the encoder's states, and the loss of the first text
        trunk: Any = model.family.trunk(model.config, model.compute)
        read = {key: batch[key] for key in ("tokens", "segment_ids", "positions")}
        states = jax.jit(lambda p, b: trunk.apply({"params": p}, **b, method="encode_states"), compiler_options=FAST)
        states = np.asarray(states(imported.params["trunk"], read).states)
        text = torch.tensor([texts[0].tokens])
        with torch.no_grad():
            reference = theirs.model.encoder(text).last_hidden_state[0].numpy()
            labels = torch.tensor([texts[0].decoder_tokens[1:]])
            read = torch.tensor([texts[0].decoder_tokens[:-1]])
            theirs_loss = float(theirs(text, decoder_input_ids=read, labels=labels).loss)
        np.testing.assert_allclose(states[0, : len(texts[0].tokens)], reference, atol=1e-4, rtol=0)
        alone = pack_pairs([[texts[0]]])
        length = labels.shape[1]
        alone["labels"] = np.roll(alone["decoder_tokens"], -1, axis=1)
        alone["weights"] = (np.arange(24)[None] < length).astype(np.float32)
        loss = jax.jit(lambda p, b: language_model_loss()(model.apply(p, b), b), compiler_options=FAST)
        total, weight = loss(imported.params, alone)[:2]
        np.testing.assert_allclose(float(total) / float(weight), theirs_loss, atol=1e-4)

    export_model(tmp_path / "out", model, imported.params)
    back = strict_load(tmp_path / "out", "AutoModelForSeq2SeqLM")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    for again, reference in zip(torch_pair_logits(back, texts), expected, strict=True):
        np.testing.assert_allclose(again, reference, atol=1e-5, rtol=0)
    beside = {"_name_or_path", "dtype", "architectures", "id2label", "label2id", "problem_type", "num_hidden_layers"}
    described = theirs.config.to_dict().keys() - beside
    assert {k: back.config.to_dict()[k] for k in described} == {k: theirs.config.to_dict()[k] for k in described}
    assert back.config.architectures == [type(theirs).__name__]


@pytest.mark.parity
@pytest.mark.parametrize("name", NAMES)
def test_published_counts_are_those_of_transformers(name, transformers):
    import torch

    record = FAMILIES[name]
    for preset, config in record.presets.items():
        theirs = transformers.AutoConfig.for_model(name, **record.to_hf(config))
        with torch.device("meta"):
            model = transformers.AutoModelForSeq2SeqLM.from_config(theirs)
        # The bias of the logits, which is no parameter there; positions that follow a formula are none here.
        count = sum(p.numel() for p in model.parameters() if p.requires_grad) + model.final_logits_bias.numel()
        assert count == record.published[preset], preset
