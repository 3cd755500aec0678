"""What MPNet has of its own: relative positions at the slots, config.json, the key names of a bare model."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.hf_folders import load_checkpoint, write_checkpoint
from safetensors.numpy import load_file, save_file

from jaxlm.errors import UserError
from jaxlm.models import FAMILIES

FAMILY = FAMILIES["mpnet"]


def test_configs_are_read_and_written_and_other_buckets_refused():
    config = FAMILY.from_hf({"vocab_size": 100, "max_position_embeddings": 514, "pad_token_id": 3})
    assert (config.max_positions, config.pad_id, config.norm_eps) == (512, 3, 1e-12)
    assert FAMILY.to_hf(config)["max_position_embeddings"] == 514
    assert FAMILY.from_hf(FAMILY.to_hf(config)) == config
    with pytest.raises(UserError, match="relative_attention_num_buckets=16 is not supported; expected 32"):
        FAMILY.from_hf({"vocab_size": 100, "relative_attention_num_buckets": 16})
    with pytest.raises(UserError, match="max_position_embeddings=2: expected more than 2"):
        FAMILY.from_hf({"vocab_size": 100, "max_position_embeddings": 2})


def test_a_bare_model_lends_its_trunk(tmp_path):
    """As sentence encoders are published: without the prefix, with the pooler."""
    sizes = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "mpnet", **sizes, "intermediate_size": 24, "max_position_embeddings": 20}
    write_checkpoint(tmp_path, config, "multiple_choice", [("mpnet.embeddings.position_ids", (1, 20))])
    path = tmp_path / "model.safetensors"
    tensors = {key.removeprefix("mpnet."): value for key, value in load_file(path).items() if "classifier" not in key}
    tensors["embeddings.position_ids"] = np.arange(20)[None]
    save_file(tensors, path)
    _, chooser = load_checkpoint(tmp_path, "multiple_choice", 1)
    assert set(chooser.initialized) == {"head/out", "head/out_bias"} and chooser.ignored == ("embeddings.position_ids",)
    _, classifier = load_checkpoint(tmp_path, "classification", 2)
    assert all(name.startswith("head/") for name in classifier.initialized)
    assert set(classifier.ignored) == {"embeddings.position_ids", "pooler.dense.bias", "pooler.dense.weight"}
