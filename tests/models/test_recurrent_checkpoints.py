"""Checkpoints of recurrent language models: golden logits, round trips, and torch's own modules."""

from __future__ import annotations

import json

import chex
import numpy as np
import pytest
from helpers.hf_folders import assert_same_tensors, load_checkpoint, read_golden, write_checkpoint
from helpers.recurrent_models import families, lm, rows
from helpers.tiny_models import Example, apply, examples, pack, token_logits, weights
from helpers.torch_reference import recurrent_logits, recurrent_tensors
from safetensors.numpy import load_file, save_file

from jaxlm.hf.checkpoint import export_model


@families
def test_golden_logits(family, tmp_path):
    golden = read_golden(f"{family}-causal_lm")
    write_checkpoint(tmp_path, golden["config"], "causal_lm")
    model, imported = load_checkpoint(tmp_path, "causal_lm")
    assert imported.initialized == imported.ignored == ()
    texts = [Example(**example) for example in golden["examples"]]
    batch = rows([texts[:2], texts[2:]])
    logits = token_logits(model, imported.params, batch)
    last = [logits[r][batch["segment_ids"][r] == s + 1][-1] for r, s in ((0, 0), (0, 1), (1, 0))]
    np.testing.assert_allclose(last, golden["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("family", "changes"),
    [("lstm", {}), ("lstm", {"embed_dim": 16}), ("gru", {"tied": False}), ("gru", {"num_layers": 1})],
)
def test_checkpoints_survive_the_round_trip(family, changes, tmp_path):
    model = lm(family, **changes)
    params = weights(model)
    export_model(tmp_path / "out", model, params)
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    title = family.capitalize()
    assert (config["model_type"], config["architectures"]) == (family, [f"{title}ForCausalLM"])
    again, imported = load_checkpoint(tmp_path / "out", "causal_lm")
    assert again.config == model.config
    assert imported.initialized == imported.ignored == ()
    chex.assert_trees_all_equal(imported.params, params)
    keys = load_file(tmp_path / "out/model.safetensors").keys()
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    rnn = {f"rnn.{part}_l{i}" for part in parts for i in range(model.config.num_layers)}
    assert rnn == {key for key in keys if key.startswith("rnn.")}

    classifier, imported = load_checkpoint(tmp_path / "out", "classification", 2)
    chex.assert_trees_all_equal(imported.params["trunk"], params["trunk"])
    assert imported.initialized == ("head/out",)
    export_model(tmp_path / "classifier", classifier, imported.params)
    again, imported = load_checkpoint(tmp_path / "classifier", "causal_lm")
    chex.assert_trees_all_equal(imported.params["trunk"], params["trunk"])
    assert imported.ignored == ("score.weight",)


@pytest.mark.parity
@pytest.mark.parametrize("seed", range(6))
@families
def test_torchs_modules_agree(family, seed, tmp_path):
    rng = np.random.default_rng(seed)
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    config = {
        "model_type": family, "vocab_size": pick(64, 71), "num_hidden_layers": pick(1, 2, 4),
        "embedding_size": pick(7, 16, 20), "hidden_size": pick(5, 16, 24), "tie_word_embeddings": bool(seed % 2),
    }  # fmt: skip
    texts = examples(6, seed=seed)
    for head in ("causal_lm", "classification"):
        tensors = recurrent_tensors(config, head)
        source = tmp_path / head
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config), encoding="utf-8")
        save_file(tensors, source / "model.safetensors")
        model, imported = load_checkpoint(source, head, 3)
        assert imported.initialized == imported.ignored == ()
        expected = [recurrent_logits(config, tensors, text.tokens) for text in texts]
        batch = pack([texts[:3], texts[3:]], 27, 3)
        if head == "classification":
            np.testing.assert_allclose(apply(model, imported.params, batch).reshape(6, 3), expected, atol=1e-4, rtol=0)
        else:
            del batch["slot_positions"]
            logits = token_logits(model, imported.params, batch)
            for i, one in enumerate(expected):
                ours = logits[i // 3][batch["segment_ids"][i // 3] == i % 3 + 1]
                np.testing.assert_allclose(ours, one, atol=1e-4, rtol=0)
        export_model(source / "out", model, imported.params)
        assert_same_tensors(source, source / "out")
