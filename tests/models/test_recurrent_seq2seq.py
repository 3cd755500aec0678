"""Recurrent encoder-decoders with attention: sizes, torch's own modules beside us, checkpoints, gradients.

What every encoder-decoder keeps (packing, cached decoding) is in test_encoder_decoders.py.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.hf_folders import load_checkpoint
from helpers.t5_models import of_segments
from helpers.text_pairs import Pair, pack_pairs, pairs
from helpers.tiny_models import FAST, assert_close, tiny, token_logits, weights
from helpers.torch_reference import attention_logits, attention_tensors
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import export_model
from jaxlm.inference.generate import generate
from jaxlm.models import FAMILIES, Model
from jaxlm.models.base import flatten, override
from jaxlm.nn.layers import ComputeConfig
from jaxlm.parallel.mesh import make_mesh
from jaxlm.parallel.sharding import Rules
from jaxlm.tasks.records import Generation

NAMES = ("lstm_seq2seq", "gru_seq2seq")
families = pytest.mark.parametrize("family", NAMES)
KEY = jax.random.key(0, impl="rbg")


@families
def test_parameter_counts_follow_the_formula(family):
    """Of a layer: G (I H + H H + 2 H); of attention three maps H x H and, if additive, one more and a vector."""
    gates = {"lstm_seq2seq": 4, "gru_seq2seq": 3}[family]
    record = FAMILIES[family]

    def layers(inputs: list[int], hidden: int) -> int:
        return sum(gates * (i * hidden + hidden * hidden + 2 * hidden) for i in inputs)

    for preset, config in record.presets.items():
        E, H, V, L = config.embed_dim, config.hidden_dim, config.vocab_size, config.num_layers
        expected = V * E + 2 * layers([E] + [H] * (L - 1), H // 2) + layers([E] + [H] * (L - 1), H) + (3 + L) * H * H
        assert Model(record, config, "seq2seq_lm", 0).num_parameters == expected == record.published[preset]
    config = override(config, {"attention": "additive", "input_feeding": True})
    grown = expected + H * H + H + gates * H * H
    assert Model(record, config, "seq2seq_lm", 0).num_parameters == grown


def test_mistakes_are_named():
    config = FAMILIES["lstm_seq2seq"].presets["small"]
    with pytest.raises(UserError, match="attention='dot': expected one of general, additive"):
        override(config, {"attention": "dot"})
    with pytest.raises(UserError, match="two directions do not divide hidden_dim=511"):
        override(config, {"hidden_dim": 511})
    model = tiny("lstm_seq2seq", ComputeConfig(rules=Rules(make_mesh("context", context=4, data=2))))
    with pytest.raises(UserError, match=r"mesh\.context=4: a recurrent network reads its rows in order; expected 1"):
        jax.eval_shape(model.apply, model.shapes, pack_pairs([[pair] for pair in pairs(8)]))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param("lstm_seq2seq", {"input_feeding": True, "embed_dim": 8}, marks=pytest.mark.slow),
        ("gru_seq2seq", {"tied": False, "bidirectional": False}),
        pytest.param("gru_seq2seq", {"num_layers": 1}, marks=pytest.mark.slow),
    ],
)
def test_checkpoints_survive_the_round_trip(family, changes, tmp_path):
    model = tiny(family, **changes)
    params = weights(model)
    export_model(tmp_path, model, params)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    title = family[:4].removesuffix("_").capitalize()
    assert config["architectures"] == [f"{title}ForConditionalGeneration"] and config["is_encoder_decoder"] is True
    again, imported = load_checkpoint(tmp_path, "seq2seq_lm")
    assert again.config == model.config and imported.initialized == imported.ignored == ()
    for ours, theirs in zip(jax.tree.leaves(imported.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parity
def test_checkpoints_have_the_names_of_torch(tmp_path):
    model = tiny("gru_seq2seq", tied=False, bidirectional=False)
    export_model(tmp_path, model, weights(model))
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert load_file(tmp_path / "model.safetensors").keys() == attention_tensors(config).keys()


@pytest.mark.slow
def test_gradients_reach_every_parameter_of_every_layer_whatever_the_knobs():
    """With dropout, whose draws are the same."""
    texts = pairs(8, seed=6)
    batch = pack_pairs([texts[:3], texts[3:5], texts[5:], []])

    def of(compute: ComputeConfig) -> Any:
        model = tiny("lstm_seq2seq", compute, embed_dim=8, attention="additive", input_feeding=True)

        def loss(params, batch):
            logits = model.apply(params, batch, KEY).logits()
            mix = np.random.default_rng(5).normal(size=logits.shape).astype(np.float32)
            return (jnp.sin(logits) * mix * (batch["decoder_segment_ids"] > 0)[..., None].astype(jnp.float32)).sum()

        params = weights(model)
        return jax.device_get(jax.jit(jax.value_and_grad(loss), compiler_options=FAST)(params, batch))

    expected = of(ComputeConfig())
    for name, gradient in flatten(expected[1]).items():
        stacked = np.asarray(gradient).reshape(2 if "_layers/" in name else 1, -1)
        assert np.abs(stacked).max(-1).min() > 1e-5, name
    assert_close(of(ComputeConfig(unroll=3, remat="full")), expected)


@pytest.mark.slow
def test_generation_writes_the_likeliest_tokens():
    model = tiny("lstm_seq2seq", input_feeding=True)
    params = weights(model)
    texts = [pair.tokens for pair in pairs(3, seed=6)]
    written = generate(model, params, [[0]] * 3, Generation(max_new_tokens=5), encoder_inputs=texts)
    batch = pack_pairs([[Pair(text, [0, *new])] for text, [(new, _)] in zip(texts, written, strict=True)])
    logits = token_logits(model, params, batch)
    for row, [(new, _)] in zip(logits, written, strict=True):
        assert new == row[:5].argmax(-1).tolist()


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(4))
@families
def test_torchs_modules_agree(family, seed, tmp_path):
    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    config = {
        "model_type": family, "vocab_size": pick(64, 71), "num_hidden_layers": 1 + seed % 3,
        "embedding_size": pick(7, 16), "hidden_size": pick(6, 16), "tie_word_embeddings": seed % 2 == 0,
        "attention": "additive" if seed % 2 else "general", "input_feeding": seed in (1, 2), "bidirectional": seed != 3,
    }  # fmt: skip
    tensors = attention_tensors(config)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, tmp_path / "model.safetensors")
    model, imported = load_checkpoint(tmp_path, "seq2seq_lm")
    assert imported.initialized == imported.ignored == ()
    texts = pairs(6, seed=seed)
    batch = pack_pairs([texts[:3], texts[3:]])
    logits = of_segments(token_logits(model, imported.params, batch), batch)
    for ours, text in zip(logits, texts, strict=True):
        np.testing.assert_allclose(ours, attention_logits(config, tensors, text), atol=1e-4, rtol=0)
