"""What ModernBERT has of its own: local layers, pooling, config.json of several years, its tokenizer's files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tokenizers
from helpers.tiny_models import apply, examples, pack, tiny, weights

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES
from jaxlm.tokenizer.tokenizer import load_tokenizer

FAMILY = FAMILIES["modernbert"]


def test_a_local_layer_reads_its_window_within_the_example():
    model = tiny("modernbert", num_layers=1, windowed_layers=(True,), local_attention=4, pooling="cls")
    params = weights(model)
    first, second = examples(2, seed=5, longest=9)
    first = first._replace(tokens=[5, 6, 7, 8, 9, 10], token_types=[0] * 6)
    batch = pack([[first, second]], length=16, slots=2)
    before = apply(model, params, batch)[0]
    moved = []
    for column in range(6):
        changed = {name: value.copy() for name, value in batch.items()}
        changed["tokens"][0, column] = 33
        moved.append(np.abs(apply(model, params, changed)[0] - before).max(-1))
    assert [bool(row[0] > 1e-4) for row in moved] == [True] * 3 + [False] * 3  # itself and two after it
    assert max(row[1] for row in moved) == 0


def test_a_classifier_reads_the_first_token_or_the_mean():
    mean, cls = tiny("modernbert", pooling="mean"), tiny("modernbert", pooling="cls")
    params, batch = weights(mean), pack([examples(2, seed=1)], length=20, slots=3)
    assert np.abs(apply(mean, params, batch) - apply(cls, params, batch))[:, :2].max() > 1e-2
    assert np.isfinite(apply(mean, params, batch)).all()


def test_configs_of_the_hub_and_of_today_mean_the_same():
    hub = {
        "vocab_size": 64, "num_hidden_layers": 4, "global_attn_every_n_layers": 2, "global_rope_theta": 500.0,
        "local_rope_theta": 20, "classifier_pooling": "mean", "position_embedding_type": "absolute",
    }  # fmt: skip
    config = FAMILY.from_hf({**hub, "pad_token_id": 0})
    assert config.local_layers == (False, True, False, True) and config.local_attention == 128
    assert (config.rope_theta, config.local_rope_theta) == (500.0, 20.0)
    written = FAMILY.to_hf(config)
    assert written["global_attn_every_n_layers"] == 2
    assert FAMILY.from_hf(written) == config
    for old in ("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers"):
        del written[old]
    assert FAMILY.from_hf(json.loads(json.dumps(written))) == config
    assert FAMILY.from_hf({"vocab_size": 64, "pad_token_id": 0}).windowed_layers is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm_bias": True}, "norm_bias=True is not supported; expected false"),
        ({"decoder_bias": False}, "decoder_bias=False is not supported; expected true"),
        ({"layer_types": ["full_attention"]}, "layer_types: expected full_attention or sliding_attention for each of"),
        ({"global_attn_every_n_layers": 0}, "global_attn_every_n_layers: expected 1 or more, found 0"),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "expected the rope_type default"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_scaling is not supported"),
        ({"classifier_pooling": "max"}, "classifier_pooling: expected cls or mean, found 'max'"),
    ],
)
def test_variants_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        FAMILY.from_hf(settings)


def test_the_tokenizer_of_its_folder_puts_cls_and_sep_around_texts(tmp_path):
    """Byte-level BPE with BERT's special tokens, under the generic class, as published."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(["a b c"], trainer)
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    roles = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **roles}), encoding="utf-8"
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "modernbert"}), encoding="utf-8")
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_id, tokenizer.mask_id) == (3, 4)
    encoded = tokenizer.encode(["é b"])[0][0]
    assert (encoded.ids[0], encoded.ids[-1]) == (1, 2)
