"""GPT-2 and Llama's families beside Transformers: logits, export, strict loading, greedy text, parameter counts."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint
from helpers.tiny_models import Example, apply, examples, pack, token_logits
from helpers.torch_reference import randomise, strict_load, torch_inputs, torch_logits

from jaxlm.hf.checkpoint import export_model
from jaxlm.inference.generate import generate
from jaxlm.models import FAMILIES, Model
from jaxlm.models.llama import LlamaConfig, rope_frequencies
from jaxlm.nn.layers import ACTIVATIONS
from jaxlm.nn.rotary import apply_rope
from jaxlm.tasks.records import Generation

pytestmark = pytest.mark.parity
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
decoders = pytest.mark.parametrize("family", DECODERS)
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 10000.0},
    {"rope_type": "linear", "rope_theta": 77.0, "factor": 3.0},
    {
        "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 12,
    },
)  # fmt: skip
# Said by other keys, or of heads that jaxlm has not.
UNCOMPARED = {"_name_or_path", "dtype", "architectures", "transformers_version", "max_window_layers"}


def random_decoder(family: str, seed: int) -> Any:
    """A random small config; the settings that tell the families apart alternate with the seed."""
    from transformers import AutoConfig

    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    heads, kv_heads = [(4, 2), (4, 1), (2, 2), (6, 2), (1, 1), (4, 4)][seed % 6]
    width = heads * pick(4, 6, 10)
    act = sorted(ACTIVATIONS)[seed % len(ACTIVATIONS)]
    layers, mlp, eps = pick(1, 2, 3, 5), pick(8, 20, 33), pick(1e-6, 1e-5, 1e-2)
    common = {
        "vocab_size": pick(64, 71, 90), "initializer_range": pick(0.02, 0.5), "tie_word_embeddings": seed % 2 == 0,
        "bos_token_id": pick(1, None), "eos_token_id": pick(2, None, [2, 3]), "pad_token_id": pick(0, 1, 3),
        "num_labels": pick(2, 3, 5), "max_position_embeddings": pick(32, 40),
    }  # fmt: skip
    if family == "gpt2":
        return AutoConfig.for_model(
            family, **common, n_layer=layers, n_embd=width, n_head=heads, n_inner=pick(None, mlp, mlp),
            layer_norm_epsilon=eps, activation_function=act, resid_pdrop=pick(0.1, 0.0), embd_pdrop=pick(0.1, 0.0),
            attn_pdrop=pick(0.1, 0.2), reorder_and_upcast_attn=False,
        )  # fmt: skip
    own: dict[str, Any] = {"head_dim": [width // heads, 6, 8][seed % 3], "attention_dropout": pick(0.0, 0.1)}
    window = {"use_sliding_window": seed % 3 != 0, "sliding_window": 3, "max_window_layers": pick(0, 1)}
    if family in ("llama", "qwen3"):
        own["attention_bias"] = seed % 3 == 1
    if family == "llama":
        own["mlp_bias"] = seed % 3 == 2
    if family == "mistral":
        own["sliding_window"] = [3, None, 5][seed % 3]
    if family == "qwen2":
        own |= {"head_dim": width // heads, **window}
    if family == "qwen3":
        own |= window
    return AutoConfig.for_model(
        family, **common, **own, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        num_key_value_heads=kv_heads, intermediate_size=mlp, rms_norm_eps=eps, hidden_act=act,
        rope_parameters=dict(ROPES[seed % 3]),
    )  # fmt: skip


def assert_described_alike(ours, theirs) -> None:
    ours, theirs = ours.to_dict(), theirs.to_dict()
    assert {k: ours.get(k) for k in theirs.keys() - UNCOMPARED} == {k: theirs[k] for k in theirs.keys() - UNCOMPARED}


def our_logits(model: Model, params, texts: list[Example]) -> list[np.ndarray]:
    """At every token of each text, three texts to a row."""
    rows = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    batch = pack(rows, length=27, slots=3, pad_id=model.config.pad_id)
    logits = token_logits(model, params, {k: batch[k] for k in ("tokens", "segment_ids", "positions")})
    return [logits[r][batch["segment_ids"][r] == s + 1] for r, row in enumerate(rows) for s in range(len(row))]


@pytest.mark.parametrize("seed", range(6))
@decoders
def test_language_models_agree_and_exports_are_bit_equal(family, seed, tmp_path, transformers):
    config = random_decoder(family, seed)
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "causal_lm")
    assert imported.initialized == imported.ignored == ()
    texts = examples(6, seed=seed)
    expected = torch_logits(theirs, texts)
    for ours, reference, text in zip(our_logits(model, imported.params, texts), expected, texts, strict=True):
        np.testing.assert_allclose(ours, reference[: len(text.tokens)], atol=1e-4, rtol=0)
    assert np.ptp(expected) > 1e-1

    export_model(tmp_path / "out", model, imported.params, {"id2label": config.id2label, "label2id": config.label2id})
    back = strict_load(tmp_path / "out", "AutoModelForCausalLM")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose(torch_logits(back, texts), expected, atol=1e-5, rtol=0)
    assert_described_alike(back.config, config)
    assert back.config.architectures == [type(theirs).__name__]


@pytest.mark.parametrize("seed", [0, 1, 2])
@decoders
def test_classifiers_agree_and_exports_are_bit_equal(family, seed, tmp_path, transformers):
    config = random_decoder(family, seed)
    theirs = randomise(transformers.AutoModelForSequenceClassification.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "classification", config.num_labels)
    assert imported.initialized == imported.ignored == ()
    texts = examples(6, seed=seed)
    batch = pack([texts[:3], texts[3:]], length=27, slots=3, pad_id=config.pad_token_id)
    ours = apply(model, imported.params, batch).reshape(6, -1)
    expected = torch_logits(theirs, texts)
    np.testing.assert_allclose(ours, expected, atol=1e-4, rtol=0)
    assert np.ptp(expected, axis=0).min() > 1e-2

    kept = {key: getattr(config, key) for key in ("id2label", "label2id", "problem_type")}
    export_model(tmp_path / "out", model, imported.params, kept)
    back = strict_load(tmp_path / "out")
    assert_same_tensors(tmp_path / "in", tmp_path / "out")
    np.testing.assert_allclose(torch_logits(back, texts), expected, atol=1e-5, rtol=0)
    assert_described_alike(back.config, config)
    assert back.config.architectures == [type(theirs).__name__]


@decoders
def test_greedy_text_is_the_same(family, tmp_path, transformers):
    import torch

    config = random_decoder(family, 3)
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(config))
    theirs.save_pretrained(tmp_path)
    model, imported = load_checkpoint(tmp_path, "causal_lm")
    prompts = [text.tokens for text in examples(4, seed=5)]
    ours = generate(model, imported.params, prompts, Generation(max_new_tokens=12))
    for prompt, [(text, _)] in zip(prompts, ours, strict=True):
        expected = list(prompt)
        for _ in range(12):  # the model alone, without its generation code and cache
            with torch.no_grad():
                expected.append(int(theirs(input_ids=torch.tensor([expected])).logits[0, -1].argmax()))
        assert text == expected[len(prompt) :]


@pytest.mark.parametrize(
    ("architecture", "family"),
    [
        ("GPT2DoubleHeadsModel", "gpt2"),
        ("GPT2ForTokenClassification", "gpt2"),
        ("GPT2ForQuestionAnswering", "gpt2"),
        ("GPT2Model", "gpt2"),
        ("LlamaForQuestionAnswering", "llama"),
        ("LlamaForTokenClassification", "llama"),
        ("MistralForQuestionAnswering", "mistral"),
        ("Qwen2Model", "qwen2"),
        ("Qwen3Model", "qwen3"),
    ],
)
def test_models_of_other_heads_lend_their_trunk(architecture, family, tmp_path, transformers):
    theirs = randomise(getattr(transformers, architecture)(random_decoder(family, 2)))  # tied
    theirs.save_pretrained(tmp_path / "in")
    model, imported = load_checkpoint(tmp_path / "in", "causal_lm")
    assert imported.initialized == ()
    export_model(tmp_path / "out", model, imported.params)
    base = strict_load(tmp_path / "out", "AutoModelForCausalLM").base_model.state_dict()
    source = theirs.base_model if "Model" not in architecture or "Double" in architecture else theirs
    assert base.keys() == source.state_dict().keys()
    for key, value in source.state_dict().items():
        np.testing.assert_array_equal(base[key].numpy(), value.numpy(), err_msg=key)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10000.0},
        {"rope_theta": 1000000.0, "rope_type": "linear", "rope_factor": 4.0},
        {"rope_theta": 500000.0, "rope_type": "llama3", "rope_factor": 32.0},
    ],
)
def test_far_positions_are_turned_as_transformers_turns_them(rope, transformers):
    import torch
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(embed_dim=256, num_heads=2, max_positions=200_000, **rope)
    theirs = LlamaRotaryEmbedding(transformers.LlamaConfig(**FAMILIES["llama"].to_hf(config)))
    positions = np.asarray([[0, 999, 30_000, 150_000]], np.int32)
    x = np.random.default_rng(0).normal(size=(1, 4, 2, 128)).astype(np.float32)
    heads = torch.from_numpy(x).transpose(1, 2)
    expected, _ = apply_rotary_pos_emb(heads, heads, *theirs(heads, torch.from_numpy(positions)))
    ours = np.asarray(apply_rope(jnp.asarray(x), jnp.asarray(positions), rope_frequencies(config)))
    np.testing.assert_allclose(ours, expected.transpose(1, 2).numpy(), atol=3e-5, rtol=0)


@decoders
def test_published_counts_are_those_of_transformers(family, transformers):
    import torch

    record = FAMILIES[family]
    for preset, config in record.presets.items():
        theirs = transformers.AutoConfig.for_model(family, **record.to_hf(config))
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(theirs)
        assert sum(p.numel() for p in model.parameters()) == record.published[preset], preset


def test_padded_batches_are_read_as_transformers_reads_them(transformers):
    """The reference itself: what stands behind the last token changes nothing before it."""
    theirs = randomise(transformers.AutoModelForCausalLM.from_config(random_decoder("mistral", 0)))
    texts = examples(3, seed=9)
    together = torch_logits(theirs, texts)
    assert torch_inputs(theirs, texts)["attention_mask"].min() == 0
    for row, text in zip(together, texts, strict=True):
        np.testing.assert_allclose(row[: len(text.tokens)], torch_logits(theirs, [text])[0], atol=1e-5, rtol=0)
