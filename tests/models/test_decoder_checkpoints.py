"""Checkpoints of the decoders without Transformers: golden logits, round trips, config.json, a real model."""

from __future__ import annotations

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, read_golden, write_checkpoint
from helpers.tiny_models import FAST, Example, examples, pack, tiny, token_logits
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import HFCheckpoint, export_model, load_params
from jaxlm.inference.generate import generate
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import override
from jaxlm.models.llama import LlamaConfig, rope_frequencies
from jaxlm.tasks.records import Generation

DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
decoders = pytest.mark.parametrize("family", DECODERS)


def language_model_inputs(texts: list[Example], length: int = 27) -> dict[str, np.ndarray]:
    batch = pack([texts], length, len(texts))
    return {name: batch[name] for name in ("tokens", "segment_ids", "positions")}


@decoders
def test_golden_logits(family, tmp_path):
    golden = read_golden(f"{family}-causal_lm")
    write_checkpoint(tmp_path, golden["config"], "causal_lm")
    model, imported = load_checkpoint(tmp_path, "causal_lm")
    assert imported.initialized == imported.ignored == ()
    texts = [Example(**example) for example in golden["examples"]]
    batch = language_model_inputs(texts)
    logits = token_logits(model, imported.params, batch)[0]
    last = [logits[batch["segment_ids"][0] == number][-1] for number in (1, 2, 3)]
    np.testing.assert_allclose(last, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("family", "tied"), [("gpt2", True), ("llama", False), ("qwen2", True), ("qwen3", False)])
def test_checkpoints_survive_the_round_trip_and_lend_their_trunk(family, tied, tmp_path, caplog):
    record = FAMILIES[family]
    source, exported = tmp_path / "in", tmp_path / "out"
    config = {"model_type": family, **record.to_hf(tiny(family, tied=tied).config)}
    unread: list[tuple[str, tuple[int, ...]]] = (
        [("lm_head.weight", (64, 16))] if tied else []
    )  # older files hold the token table twice
    if family != "gpt2":
        unread.append(("model.layers.0.self_attn.rotary_emb.inv_freq", (2,)))
    write_checkpoint(source, config, "causal_lm", unread)
    tensors = load_file(source / "model.safetensors")
    if tied:
        table = next(value for key, value in tensors.items() if key.endswith(("wte.weight", "embed_tokens.weight")))
        tensors["lm_head.weight"] = table.copy()
    if family != "gpt2":
        tensors[unread[-1][0]] = rope_frequencies(tiny(family).config).astype(np.float16)
    save_file(tensors, source / "model.safetensors")
    model, imported = load_checkpoint(source, "causal_lm")
    assert imported.initialized == ()
    assert imported.ignored == tuple(sorted(key for key, _ in unread))
    export_model(exported, model, imported.params)
    assert_same_tensors(source, exported, without=imported.ignored)
    written = json.loads((exported / "config.json").read_text(encoding="utf-8"))
    assert written["architectures"] == ["GPT2LMHeadModel" if family == "gpt2" else f"{family.title()}ForCausalLM"]
    assert written["tie_word_embeddings"] is tied
    assert HFCheckpoint(exported).model_config == model.config

    _, classifier = load_checkpoint(exported, "classification", 2)
    assert classifier.initialized == ("head/out",)
    assert classifier.ignored == (() if tied else ("lm_head.weight",))
    export_model(tmp_path / "classifier", Model(record, model.config, "classification", 2), classifier.params)
    with caplog.at_level(logging.INFO, "jaxlm"):
        _, again = load_checkpoint(tmp_path / "classifier", "causal_lm")
    assert again.initialized == (() if tied else ("head/unembed",))
    assert again.ignored == ("score.weight",)
    assert ("initialized" in caplog.text and "head/unembed" in caplog.text) != tied


def test_gpt2_as_published_lacks_the_prefix_and_carries_its_masks(tmp_path):
    config = {"model_type": "gpt2", **FAMILIES["gpt2"].to_hf(tiny("gpt2").config)}
    write_checkpoint(tmp_path, config, "causal_lm")
    model, whole = load_checkpoint(tmp_path, "causal_lm")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
    assert "wte.weight" in tensors and "h.0.attn.c_attn.bias" in tensors
    for i in range(3):
        tensors[f"h.{i}.attn.bias"] = np.tril(np.ones((1, 1, 24, 24), np.float32))
        tensors[f"h.{i}.attn.masked_bias"] = np.asarray(-1e4, np.float32)
    tensors["h.0.attn.bias"] = tensors["h.0.attn.bias"].astype(bool)
    save_file(tensors, tmp_path / "model.safetensors")
    _, bare = load_checkpoint(tmp_path, "causal_lm")
    assert bare.initialized == ()
    assert len(bare.ignored) == 6
    batch = language_model_inputs(examples(3))
    np.testing.assert_array_equal(*(token_logits(model, found.params, batch) for found in (whole, bare)))

    save_file({**tensors, "h.1.attn.bias": np.ones((1, 1, 24, 24), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"h\.1\.attn\.bias has other values than config.json means"):
        load_checkpoint(tmp_path, "causal_lm")


def test_half_precision_checkpoints_are_read(tmp_path):
    """As most are published; NumPy has no bfloat16 of its own."""
    import ml_dtypes

    config = {"model_type": "llama", **FAMILIES["llama"].to_hf(tiny("llama").config)}
    write_checkpoint(tmp_path, config, "causal_lm")
    tensors = load_file(tmp_path / "model.safetensors")
    save_file({key: value.astype(ml_dtypes.bfloat16) for key, value in tensors.items()}, tmp_path / "model.safetensors")
    _, imported = load_checkpoint(tmp_path, "causal_lm")
    table = np.asarray(imported.params["trunk"]["tokens"])
    expected = tensors["model.embed_tokens.weight"]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, expected.astype(ml_dtypes.bfloat16).astype(np.float32))
    assert np.abs(table - expected).max() > 0


@pytest.mark.parametrize(
    ("changes", "bits"),
    [
        (
            {"head_dim": 80, "rope_theta": 500000.0},
            [1065353216, 1041172987, 1017108558, 993173538, 969383118, 945754308, 922306086],
        ),
        (
            {"head_dim": 64, "rope_type": "llama3", "rope_factor": 32.0},
            [1065353216, 1043732615, 1023510243, 1001931932, 956801654, 918189907],
        ),
    ],
)
def test_rotary_frequencies_have_the_bits_of_the_published_models(changes, bits):
    """Bits of every sixth frequency in Transformers 5.23."""
    frequencies = rope_frequencies(LlamaConfig(**changes))
    assert frequencies.dtype == np.float32
    assert frequencies.view(np.int32)[::6].tolist() == bits


# What config.json means.


def test_gpt2_configs_as_published_and_as_silent():
    published = {
        "vocab_size": 50257, "n_ctx": 1024, "n_embd": 1024, "n_head": 16, "n_layer": 24, "n_positions": 1024,
        "attn_pdrop": 0.1, "embd_pdrop": 0.1, "resid_pdrop": 0.1, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "bos_token_id": 50256, "eos_token_id": 50256,
    }  # fmt: skip
    record = FAMILIES["gpt2"]
    assert record.from_hf(published) == record.presets["medium"]
    assert record.from_hf({}) == record.presets["small"]
    config = record.from_hf({"n_embd": 32, "n_head": 4, "embd_pdrop": 0, "bos_token_id": None, "eos_token_id": [3, 5]})
    assert (config.mlp_dim, config.dropout, config.embed_dropout) == (128, 0.1, 0.0)
    assert (config.bos_id, config.eos_id, config.pad_id) == (None, (3, 5), None)
    assert record.from_hf(record.to_hf(config)) == config
    assert record.to_hf(override(config, {"mlp_dim": 100}))["n_inner"] == 100


def test_llama_configs_before_and_since_transformers_5():
    record = FAMILIES["llama"]
    sizes = record.to_hf(record.presets["llama-3.2-1b"])
    scaling = {
        "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }  # fmt: skip
    assert (sizes["rope_theta"], sizes["rope_scaling"]) == (500000.0, scaling)
    since = {k: v for k, v in sizes.items() if k not in ("rope_theta", "rope_scaling")}
    since["rope_parameters"] = {**scaling, "rope_theta": 500000.0}
    assert record.from_hf(since) == record.from_hf(sizes) == record.presets["llama-3.2-1b"]
    assert record.from_hf({**sizes, "rope_scaling": {"type": "linear", "factor": 2}}).rope_factor == 2
    silent = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = record.from_hf({**sizes, "rope_scaling": silent, "max_position_embeddings": 4096})
    assert config.rope_original_positions == 4096
    assert record.from_hf({"hidden_size": 64, "rope_parameters": None}).rope_theta == 10000.0


def test_silent_and_null_keys_mean_what_transformers_takes_them_for():
    mistral = FAMILIES["mistral"].from_hf({})
    assert (mistral.heads, mistral.window, mistral.max_positions) == ((32, 8, 128), 4096, 131072)
    mistral = FAMILIES["mistral"].from_hf({"sliding_window": None, "num_key_value_heads": None})
    assert (mistral.heads, mistral.window) == ((32, 32, 128), None)
    llama = FAMILIES["llama"].from_hf({"eos_token_id": [128001, 128008], "bos_token_id": None})
    assert (llama.heads, llama.eos_id, llama.bos_id, llama.norm_eps) == ((32, 32, 128), (128001, 128008), None, 1e-6)
    assert llama.tied is False and llama.pad_id is None
    llama = FAMILIES["llama"].from_hf({"attention_bias": True})
    assert llama.qkv_bias and llama.output_bias and not llama.mlp_bias
    qwen = FAMILIES["qwen2"].from_hf({})
    assert qwen.qkv_bias and not qwen.output_bias and qwen.eos_id is None
    assert FAMILIES["qwen3"].from_hf({"hidden_size": 64}).heads == (32, 32, 128)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_of_qwen(family):
    record = FAMILIES[family]
    sizes = {
        "num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
    }  # fmt: skip

    def windows(**keys):
        config = record.from_hf({**sizes, **keys})
        return config.window, config.windowed_layers

    assert windows(sliding_window=8, max_window_layers=2) == (None, None)  # not in use
    use = {"use_sliding_window": True, "sliding_window": 8}
    assert windows(**use, max_window_layers=2) == (8, (False, False, True, True))
    assert windows(**use, max_window_layers=0) == (8, None)
    assert windows(**use) == (None, None)  # the first 28 layers see everything
    kinds = ["sliding_attention", "full_attention"] * 2
    assert windows(**use, layer_types=kinds) == (8, (True, False, True, False))
    config = record.from_hf({**sizes, **use, "layer_types": kinds})
    written = record.to_hf(config)
    assert written["layer_types"] == kinds and written["use_sliding_window"] and written["sliding_window"] == 8
    assert record.from_hf(written) == config
    with pytest.raises(UserError, match="layer_types has 'chunked_attention'; expected full_attention or sliding_att"):
        record.from_hf({**sizes, **use, "layer_types": ["chunked_attention"] * 4})
    with pytest.raises(UserError, match="layer_types has sliding_attention without use_sliding_window"):
        record.from_hf({**sizes, "layer_types": kinds})
    with pytest.raises(UserError, match="windowed_layers says it of 3 layers, the model has 4"):
        record.from_hf({**sizes, **use, "layer_types": kinds[:3]})


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=true is not supported"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=false is not supported; expected true"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=true is not supported; expected false"),
        ("gpt2", {"activation_function": "mish"}, "activation_function='mish' is not supported; expected one of gelu,"),
        ("gpt2", {"n_head": 7}, "7 attention heads do not divide the width 768"),
        ("llama", {"hidden_act": "mish"}, "hidden_act='mish' is not supported; expected one of gelu,"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic' is not supported"),
        ("qwen2", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type 'yarn' is not supported"),
        ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor=0\.5 is not supported"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "expected the key 'factor', which is absent"),
        (
            "qwen3",
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "rope_type one for each type of layer is not supported",
        ),
        ("llama", {"num_attention_heads": 30}, "30 attention heads do not divide the width 4096"),
        ("llama", {"num_key_value_heads": 5}, "5 key-value heads do not divide 32 attention heads"),
        ("llama", {"head_dim": 5}, "head_dim=5: expected an even number"),
    ],
)
def test_variants_that_would_compute_something_else_are_refused(family, settings, message):
    with pytest.raises(UserError, match=message):
        FAMILIES[family].from_hf(settings)


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("llama", {"qk_norm": True}, "no llama model has qk_norm=True"),
        ("llama", {"window": 4}, "no llama model has window=4"),
        ("llama", {"qkv_bias": True}, "no llama model has qkv_bias=True"),
        ("mistral", {"qkv_bias": True, "output_bias": True}, "no mistral model has qkv_bias=True, output_bias=True"),
        ("qwen2", {"qkv_bias": False}, "no qwen2 model has qkv_bias=False"),
        ("qwen3", {"mlp_bias": True}, "no qwen3 model has mlp_bias=True"),
        ("llama", {"rope_type": "yarn"}, "rope_type='yarn' is not supported; expected one of default, linear, llama3"),
    ],
)
def test_what_no_checkpoint_of_the_family_can_say_is_refused_before_training(family, changes, message):
    with pytest.raises(UserError, match=message):
        tiny(family, **changes).shapes  # noqa: B018


def test_one_architecture_is_equal_however_it_is_said():
    """Export compares by it: absent and spelled-out sizes are the same model."""
    record = FAMILIES["mistral"]
    preset = record.presets["mistral-7b"]
    config = override(preset, {"head_dim": 128, "windowed_layers": (True,) * 32, "rope_factor": 3.0})
    assert record.from_hf(record.to_hf(config)) == preset != config


# A real model.


@pytest.fixture(scope="module")
def stories(shared_data):
    """Llama of 260 thousand parameters, trained on TinyStories: model, parameters, directory."""
    directory = shared_data / "checkpoints" / "stories260k"
    checkpoint = HFCheckpoint(directory)
    model = Model(checkpoint.family, checkpoint.model_config, "causal_lm", 0)
    imported = load_params(checkpoint, model, jax.random.key(0))
    assert imported.initialized == imported.ignored == ()
    assert model.num_parameters == 260_032
    return model, imported.params, directory


def test_a_real_models_logits_and_text(stories):
    model, params, directory = stories
    golden = np.load(directory / "golden_logits.npz")
    tokens = golden["input_ids"][None]
    length = np.arange(tokens.shape[1], dtype=np.int32)[None]
    logits = token_logits(model, params, {"tokens": tokens, "segment_ids": length * 0 + 1, "positions": length})
    np.testing.assert_allclose(logits[0], golden["logits"], atol=1e-4, rtol=0)
    text = golden["greedy_from_bos"].tolist()
    wanted = Generation(max_new_tokens=81)
    [[one], [other]] = generate(model, params, [text[:1], text[:40]], wanted)
    assert [one.tokens, other.tokens] == [text[1:82], text[40:]]


@pytest.mark.parametrize(
    ("corpus", "low", "high"), [("tinystories_slice/train.txt", 1.8, 1.9), ("tinyshakespeare/train.txt", 4.65, 4.8)]
)
def test_a_real_models_loss(stories, shared_data, corpus, low, high):
    """Nats per token of what it was trained on, and of what it was not."""
    from tokenizers import Tokenizer

    model, params, directory = stories
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    ids = tokenizer.encode((shared_data / "lm" / corpus).read_text(encoding="utf-8")[:120_000]).ids
    rows = np.asarray(ids[: len(ids) // 4096 * 4096], np.int32).reshape(-1, 16, 256)[::3]  # for time

    def surprise(params, tokens):
        positions = jnp.tile(jnp.arange(255, dtype=jnp.int32)[None], (16, 1))
        batch = {"tokens": tokens[:, :-1], "segment_ids": jnp.ones_like(positions), "positions": positions}
        logits = jax.nn.log_softmax(model.apply(params, batch).logits())
        return -jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1).mean()

    compiled = jax.jit(surprise, compiler_options=FAST)
    assert low < np.mean([compiled(params, tokens) for tokens in rows]) < high
