"""What DeBERTa has of its own: relative positions and their maps, config.json, both layouts of the masked-LM head."""

from __future__ import annotations

import math

import chex
import numpy as np
import pytest
from helpers.hf_folders import load_checkpoint, write_checkpoint
from helpers.tiny_models import examples, pack, token_logits
from helpers.torch_reference import random_config, randomise, torch_inputs
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.hf.checkpoint import export_model
from jaxlm.models import FAMILIES
from jaxlm.models.deberta import position_rows

FAMILY = FAMILIES["deberta-v2"]
HUB = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
    "relative_attention": True, "position_buckets": 256, "norm_rel_ebd": "layer_norm", "share_att_key": True,
    "pos_att_type": "p2c|c2p", "position_biased_input": False, "max_relative_positions": -1, "type_vocab_size": 0,
}  # fmt: skip
"""As the config.json of the published v3 checkpoints has it, but for sizes."""


def test_near_distances_have_rows_of_their_own_and_far_ones_share_them():
    distances = np.arange(-700, 701)
    rows = dict(zip(distances.tolist(), position_rows(distances, 256, 512).tolist(), strict=True))
    assert [rows[d] for d in (-128, -1, 0, 1, 128)] == [128, 255, 256, 257, 384]
    for distance in range(129, 512):
        exact = 127 * math.log(distance / 128) / math.log(511 / 128)
        if abs(exact - round(exact)) > 1e-4:  # else decided by rounding
            assert rows[distance] == 256 + 128 + math.ceil(exact), distance
            assert rows[-distance] == 512 - rows[distance]
    assert rows[511] == rows[700] == 511 and rows[-700] == 0
    np.testing.assert_array_equal(position_rows(np.arange(-5, 6), None, 3), [0, 0, 0, 1, 2, 3, 4, 5, 5, 5, 5])


@pytest.mark.parity
@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (4, 7), (6, 16), (64, 100)])
def test_rows_are_those_of_transformers(buckets, farthest, transformers):
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    distances = np.arange(-3000, 3001)
    theirs = make_log_bucket_position(torch.from_numpy(distances), buckets, farthest).to(torch.long).numpy()
    np.testing.assert_array_equal(
        position_rows(distances, buckets, farthest), np.clip(theirs + buckets, 0, 2 * buckets - 1)
    )


def test_a_config_of_the_hub_is_read_and_written():
    config = FAMILY.from_hf(HUB)
    assert (config.num_buckets, config.farthest, config.span, config.pad_id) == (256, 512, 256, 0)
    assert config.normalized_positions and not config.own_position_maps and not config.absolute_positions
    assert FAMILY.from_hf(FAMILY.to_hf(config)) == config
    assert FAMILY.from_hf({**HUB, "pos_att_type": ["c2p", "p2c"]}) == config
    silent = FAMILY.from_hf({"vocab_size": 64, "relative_attention": True, "pos_att_type": "c2p|p2c"})
    assert silent.own_position_maps and silent.absolute_positions and not silent.normalized_positions
    assert (silent.num_buckets, silent.span, silent.embed_dim) == (None, 512, 1536)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conv_kernel_size": 3}, "conv_kernel_size=3 is not supported: a convolution"),
        ({"pos_att_type": "c2p"}, r"pos_att_type='c2p' is not supported; expected 'p2c\|c2p'"),
        ({"pos_att_type": ["p2c", "c2p", "p2p"]}, "pos_att_type=.* is not supported"),
        ({"pos_att_type": None}, "pos_att_type=None is not supported"),
        ({"relative_attention": False}, "relative_attention=false is not supported"),
        ({"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd='batch_norm' is not supported; expected 'layer_norm' or 'none'"),
        ({"embedding_size": 8}, "embedding_size=8 is not supported; expected 16"),
        ({"attention_head_size": 8}, "attention_head_size=8 is not supported; expected 4"),
        ({"pooler_hidden_size": 4}, "pooler_hidden_size=4 is not supported; expected 16"),
        ({"pooler_hidden_act": "mish"}, "pooler_hidden_act='mish' is not supported"),
        ({"position_buckets": "many"}, "position_buckets: expected a whole number, found 'many'"),
        ({"position_buckets": 256, "max_relative_positions": 100}, "buckets of relative positions"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FAMILY.from_hf({**HUB, **settings})


PUBLISHED_NAMES = {
    "cls.predictions.transform.dense.weight": "lm_predictions.lm_head.dense.weight",
    "cls.predictions.transform.dense.bias": "lm_predictions.lm_head.dense.bias",
    "cls.predictions.transform.LayerNorm.weight": "lm_predictions.lm_head.LayerNorm.weight",
    "cls.predictions.transform.LayerNorm.bias": "lm_predictions.lm_head.LayerNorm.bias",
    "cls.predictions.bias": "lm_predictions.lm_head.bias",
}


def test_the_published_checkpoints_lend_their_head_and_leave_the_detector(tmp_path):
    detector = {f"mask_predictions.{name}": (16,) for name in ("dense.weight", "LayerNorm.bias", "classifier.bias")}
    absent = {"deberta.embeddings.position_embeddings.weight": (512, 16)}
    write_checkpoint(tmp_path, {"model_type": "deberta-v2", **HUB}, "masked_lm", [*detector.items(), *absent.items()])
    model, legacy = load_checkpoint(tmp_path, "masked_lm")
    path = tmp_path / "model.safetensors"
    save_file({PUBLISHED_NAMES.get(key, key): value for key, value in load_file(path).items()}, path)
    _, published = load_checkpoint(tmp_path, "masked_lm")
    chex.assert_trees_all_equal(published.params, legacy.params)
    assert published.initialized == () and set(published.ignored) == detector.keys() | absent.keys()
    _, classifier = load_checkpoint(tmp_path, "classification", 2)
    assert all(name.startswith("head/") for name in classifier.initialized)
    assert set(classifier.ignored) == {*detector, *absent, *PUBLISHED_NAMES.values()}
    assert model.config.tied


@pytest.mark.parity
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_of_the_new_layout_agrees_and_is_exported_in_the_old_one(tied, tmp_path, transformers):
    """The new layout reads the token table, whatever config.json says of ties."""
    import torch

    config = random_config("deberta-v2", 5)
    config.legacy, config.tie_word_embeddings = False, tied
    theirs = randomise(transformers.AutoModelForMaskedLM.from_config(config))
    theirs.save_pretrained(tmp_path / "in")
    assert any(key.startswith("lm_predictions.lm_head.") for key in load_file(tmp_path / "in/model.safetensors"))
    model, imported = load_checkpoint(tmp_path / "in", "masked_lm")
    assert imported.initialized == imported.ignored == ()
    texts = examples(3, seed=5)
    batch = pack([texts], length=27, slots=3, pad_id=model.config.pad_id)
    del batch["slot_positions"]
    export_model(tmp_path / "out", model, imported.params)
    back, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    ours = token_logits(model, imported.params, batch)[0]
    for reference in (theirs, back.eval()):
        with torch.no_grad():
            logits = reference(**torch_inputs(reference, texts)).logits.numpy()
        for i, text in enumerate(texts):
            row = ours[batch["segment_ids"][0] == i + 1]
            np.testing.assert_allclose(row, logits[i, : len(text.tokens)], atol=1e-4, rtol=0)
